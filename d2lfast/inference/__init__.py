"""What trained networks are used for: continuing a text, translating, naming."""
