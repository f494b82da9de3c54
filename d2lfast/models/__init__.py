"""The book's networks, each written once over a `layers` namespace."""
