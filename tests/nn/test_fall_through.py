"""`from d2lfast import nn` replaces `from torch import nn`."""

import inspect

import pytest
import torch

import d2lfast

MODULES = (
    "Conv2d",
    "LazyConv2d",
    "MaxPool2d",
    "AvgPool2d",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "SyncBatchNorm",
    "RNNCell",
    "GRUCell",
    "LSTMCell",
    "RNN",
    "GRU",
    "LSTM",
    "Sequential",
    "CrossEntropyLoss",
)
FUNCTIONS = (
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "batch_norm",
    "cross_entropy",
    "linear",
)


def test_every_public_name_of_torch_is_there():
    for ours, native in ((d2lfast.nn, torch.nn), (d2lfast.nn.functional, torch.nn.functional)):
        public = [name for name in dir(native) if not name.startswith("_")]
        assert len(public) > 100
        for name in public:
            assert hasattr(ours, name), name
        assert set(public) <= set(dir(ours))


def test_other_names_are_those_of_torch():
    for name in (
        "Linear",
        "ReLU",
        "Module",
        "Parameter",
        "MSELoss",
        "init",
        "utils",
        "Conv1d",
    ):
        assert getattr(d2lfast.nn, name) is getattr(torch.nn, name)
    for name in ("relu", "bilinear", "nll_loss", "conv1d", "pad"):
        assert getattr(d2lfast.nn.functional, name) is getattr(torch.nn.functional, name)


@pytest.mark.parametrize("name", MODULES)
def test_module_is_a_subclass(name):
    ours, native = getattr(d2lfast.nn, name), getattr(torch.nn, name)
    assert ours is not native
    # DistributedDataParallel refuses torch's SyncBatchNorm and its subclasses on the CPU.
    assert issubclass(ours, native) or name == "SyncBatchNorm"
    if issubclass(ours, native):
        assert inspect.signature(ours.__init__) == inspect.signature(native.__init__)
    assert ours.__name__ == native.__name__
    assert ours.__doc__
    assert ours.__doc__ != native.__doc__
    assert name in d2lfast.nn.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_replaces(name):
    ours, native = getattr(d2lfast.nn.functional, name), getattr(torch.nn.functional, name)
    assert ours is not native
    assert ours.__doc__
    assert name in d2lfast.nn.functional.__all__


def test_a_name_that_torch_does_not_have():
    for module in (d2lfast.nn, d2lfast.nn.functional):
        with pytest.raises(AttributeError, match=f"module '{module.__name__}' has no attribute 'Conv9d'"):
            _ = module.Conv9d


def test_star_import():
    names: dict = {}
    exec("from d2lfast.nn import *", names)
    for name in MODULES:
        assert names[name] is getattr(d2lfast.nn, name)
