"""The book's networks, each written once over a `layers` namespace.

`layers=d2lfast.nn` (the default) builds a network from our layers, `layers=torch.nn` the same network, with
the same `state_dict` keys, from torch's.
"""

from d2lfast.models.init import init_cnn
from d2lfast.models.lenet import BNLeNet, LeNet, bn_lenet, lenet

__all__ = ["BNLeNet", "LeNet", "bn_lenet", "init_cnn", "lenet"]
