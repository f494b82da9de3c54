"""How long and how fast a network learns by default."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Defaults of a network: the book's batch size, and a learning rate and number of steps that do well.

    The book's ten epochs are 4,690 steps on the full Fashion-MNIST; on a part of it they would be few. The
    number of epochs is therefore chosen so that there are at least `steps` of them.
    """

    learning_rate: float
    steps: int
    batch_size: int = 128
    epochs: int = 10

    def epochs_for(self, examples: int, batch_size: int) -> int:
        """The number of epochs on a training set of `examples`."""
        return max(self.epochs, math.ceil(self.steps / math.ceil(examples / batch_size)))


# LeNet's sigmoids learn slowly at the English edition's rate of 0.1: the rate is the Chinese edition's.
RECIPES = {
    "lenet": Recipe(learning_rate=0.9, steps=2_400),
    "bn-lenet": Recipe(learning_rate=0.1, steps=1_000),
}
