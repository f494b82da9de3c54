"""Training: the book's Module and Trainer, and twins that are compared."""

from d2lfast.data.module import DataModule
from d2lfast.hyperparameters import HyperParameters, add_to_class
from d2lfast.training.board import ProgressBoard
from d2lfast.training.comparison import Comparison, train, trainer_of, twins
from d2lfast.training.epoch import Epoch
from d2lfast.training.module import Classifier, Module
from d2lfast.training.network import NetworkModule
from d2lfast.training.progress import ProgressBar
from d2lfast.training.recipe import RECIPES, Recipe
from d2lfast.training.sgd import SGD
from d2lfast.training.trainer import Trainer

__all__ = [
    "RECIPES",
    "SGD",
    "Classifier",
    "Comparison",
    "DataModule",
    "Epoch",
    "HyperParameters",
    "Module",
    "NetworkModule",
    "ProgressBar",
    "ProgressBoard",
    "Recipe",
    "Trainer",
    "add_to_class",
    "train",
    "trainer_of",
    "twins",
]
