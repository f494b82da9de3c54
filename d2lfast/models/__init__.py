"""The book's networks, each written once over a `layers` namespace.

`layers=d2lfast.nn` (the default) builds a network from our layers, `layers=torch.nn` the same network, with
the same `state_dict` keys, from torch's. `registry.NETWORKS` names them all, with the book's settings.
"""

from d2lfast.models import registry
from d2lfast.models.alexnet import AlexNet
from d2lfast.models.init import init_cnn
from d2lfast.models.language_model import RNNLM
from d2lfast.models.lenet import BNLeNet, LeNet, bn_lenet, lenet
from d2lfast.models.recurrent import GRU, LSTM, RNN, BiGRU
from d2lfast.models.resnet import Residual, ResNet, ResNet18

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "RNNLM",
    "AlexNet",
    "BNLeNet",
    "BiGRU",
    "LeNet",
    "ResNet",
    "ResNet18",
    "Residual",
    "bn_lenet",
    "init_cnn",
    "lenet",
    "registry",
]
