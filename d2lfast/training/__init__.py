"""Training of classifiers, alone or as twins that are compared."""

from d2lfast.training.classifier import Epoch, Run, train
from d2lfast.training.comparison import Comparison, twins
from d2lfast.training.recipe import RECIPES, Recipe

__all__ = ["RECIPES", "Comparison", "Epoch", "Recipe", "Run", "train", "twins"]
