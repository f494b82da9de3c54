"""Chapter 6: blocks of one's own, parameters, initialisation, saving."""

import tempfile
from pathlib import Path

import torch

from d2lfast import book as d2l
from d2lfast import nn

X = torch.rand(2, 20)
net = d2l.MySequential(nn.LazyLinear(256), nn.ReLU(), nn.LazyLinear(10))
print(
    "own chain:",
    net(X).shape,
    "| nested:",
    nn.Sequential(d2l.NestMLP(), nn.LazyLinear(20), d2l.FixedHiddenMLP())(X),
)
print("centred mean:", d2l.CenteredLayer()(X).mean().item())

shared = nn.LazyLinear(8)
tied = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU(), nn.LazyLinear(1))
tied(X)
print("tied layers are one:", tied[2].weight is tied[4].weight)
for init in (d2l.init_normal, d2l.init_constant, d2l.init_xavier, d2l.my_init):
    net.apply(init)
    print(f"{init.__name__}: first weights {net(X)[0, :2].tolist()}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mlp.params"
    torch.save(net.state_dict(), path)
    clone = d2l.MySequential(nn.LazyLinear(256), nn.ReLU(), nn.LazyLinear(10))
    clone.load_state_dict(torch.load(path, weights_only=True))
    print("the copy answers the same:", torch.equal(clone(X), net(X)))
