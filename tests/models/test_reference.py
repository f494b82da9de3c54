"""Parameters, multiply-adds and shapes of every layer, as in the book."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import d2lfast
from d2lfast import models
from d2lfast.models.registry import NETWORKS, network
from d2lfast.summary import summarize

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "networks.md"
# Parameters; multiply-adds of one example, rounded as the book's tables round them (None: not in them).
REFERENCE = {
    "linear-scratch": (3, None),
    "linear": (3, None),
    "weight-decay": (201, None),
    "logistic": (9, None),
    "softmax-scratch": (7_850, "7.84e3"),
    "softmax": (7_850, "7.84e3"),
    "mlp-scratch": (203_530, "2.03e5"),
    "mlp": (203_530, "2.03e5"),
    "dropout-mlp-scratch": (269_322, "2.69e5"),
    "dropout-mlp": (269_322, "2.69e5"),
    "lenet": (61_706, "4.17e5"),
    "alexnet": (46_764_746, "9.38e8"),
    "vgg11": (128_806_154, "7.55e9"),
    "vgg11-small": (43_093_322, "5.12e8"),
    "nin": (1_992_166, "7.62e8"),
    "googlenet": (5_977_530, "2.76e8"),
    "bn-lenet-scratch": (44_878, "2.82e5"),
    "bn-lenet": (44_878, "2.82e5"),
    "resnet18": (11_178_378, "3.19e8"),
    "resnext": (1_701_834, None),
    "densenet": (758_226, "1.29e8"),
    "regnetx32": (179_290, "4.03e7"),
    "toy-lenet": (129_068, None),
    "resnet18-small": (11_175_818, None),
    "course-net": (97_298, "6.02e6"),
    "rnn-scratch": (2_876, None),
    "rnn": (2_908, None),
    "lstm-scratch": (8_732, None),
    "lstm": (8_860, None),
    "gru-scratch": (6_780, None),
    "gru": (6_876, None),
    "deep-rnn-scratch": (4_956, None),
    "deep-gru": (13_212, None),
    "bi-rnn-scratch": (5_724, None),
    "bi-gru": (13_724, None),
    "hello-cell": (40, None),
    "hello-rnn": (40, None),
    "hello-embedding": (176, None),
    "names": (135_818, None),
    "seq2seq": (1_935_062, None),
}
# Channels and size behind each entry of `net`, for one image of the book's size.
SHAPES = {
    "lenet": "6x28 6x28 6x14 16x10 16x10 16x5 400 120 120 84 84 10",
    "bn-lenet": "6x24 6x24 6x24 6x12 16x8 16x8 16x8 16x4 256 120 120 120 84 84 84 10",
    "bn-lenet-scratch": "6x24 6x24 6x24 6x12 16x8 16x8 16x8 16x4 256 120 120 120 84 84 84 10",
    "alexnet": "96x54 96x54 96x26 256x26 256x26 256x12 384x12 384x12 384x12 384x12 256x12 256x12 256x5 "
    "6400 4096 4096 4096 4096 4096 4096 10",
    "vgg11": "64x112 128x56 256x28 512x14 512x7 25088 4096 4096 4096 4096 4096 4096 10",
    "vgg11-small": "16x112 32x56 64x28 128x14 128x7 6272 4096 4096 4096 4096 4096 4096 10",
    "nin": "96x54 96x26 256x26 256x12 384x12 384x5 384x5 10x5 10x1 10",
    "googlenet": "64x24 192x12 480x6 832x3 1024 10",
    "resnet18": "64x24 64x24 128x12 256x6 512x3 10",
    "resnet18-small": "64x28 64x28 128x14 256x7 512x4 10",
    "resnext": "64x24 64x24 128x12 256x6 512x3 10",
    "densenet": "64x24 192x24 96x12 224x12 112x6 240x6 120x3 248x3 10",
    "regnetx32": "32x48 32x24 80x12 10",
    "softmax": "784 10",
    "mlp": "784 256 256 10",
    "dropout-mlp": "784 256 256 256 256 256 256 10",
}
LAYERS = pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])


def built(name, layers=d2lfast.nn):
    """The network without its parameters' numbers, which nothing here needs."""
    with torch.device("meta"):
        model = NETWORKS[name].builder(layers=layers)
    return model.to_empty(device="cpu")


def test_every_network_has_a_reference():
    assert list(NETWORKS) == list(REFERENCE)


@LAYERS
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters(name, layers):
    with torch.device("meta"):
        model = NETWORKS[name].builder(layers=layers)
    assert sum(p.numel() for p in model.parameters()) == REFERENCE[name][0]


@pytest.mark.parametrize("name", [name for name, (_, macs) in REFERENCE.items() if macs])
def test_multiply_adds(name):
    network = NETWORKS[name]
    inputs = network.example(1).inputs
    summary = summarize(built(name), *inputs)
    assert f"{summary.macs:.3g}" == f"{float(REFERENCE[name][1]):.3g}"
    assert summary.parameters == REFERENCE[name][0] == sum(layer.parameters for layer in summary)
    if name != "vgg11":
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            built(name, nn).eval()(*inputs)
        assert counter.get_total_flops() == 2 * summary.macs


def test_multiply_adds_of_resnet18_at_224():
    summary = summarize(built("resnet18"), torch.rand(1, 1, 224, 224))
    assert f"{summary.macs:.3g}" == "1.73e+09"


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    x = torch.zeros(1, *NETWORKS[name].shape)
    model = built(name).eval()
    shapes = []
    with torch.no_grad():
        for layer in model.net:
            x = layer(x)
            shapes.append(f"{x.shape[1]}x{x.shape[2]}" if x.dim() == 4 else str(x.shape[1]))
    assert " ".join(shapes) == SHAPES[name]


@LAYERS
@pytest.mark.parametrize(
    ("block", "parameters"),
    [
        (lambda **kw: models.ResNeXtBlock(32, 16, 1, in_channels=32, **kw), 6_944),
        (lambda **kw: models.ShortCut(3, 10, **kw), 1_270),
        (lambda **kw: models.CourseInception(10, **kw), 19_104),
        (lambda **kw: models.CourseInception(20, **kw), 19_824),
        (lambda **kw: models.Seq2SeqEncoder(194, 256, 256, 2, 0.2, **kw), 839_168),
        (lambda **kw: models.Seq2SeqDecoder(214, 256, 256, 2, 0.2, **kw), 1_095_894),
    ],
)
def test_parameters_of_blocks(block, parameters, layers):
    assert sum(p.numel() for p in block(layers=layers).parameters()) == parameters


def test_the_documentation_lists_every_network():
    rows = {}
    for line in DOCUMENTATION.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            name, section, shape, parameters, macs, training = (cell.strip() for cell in line.split("|")[1:7])
            rows[name.strip("`")] = (section, shape, parameters, macs, training)
    assert list(rows) == list(NETWORKS)
    for name, (section, shape, parameters, macs, training) in rows.items():
        network = NETWORKS[name]
        assert section == network.section
        assert shape == "x".join(map(str, network.shape))
        assert parameters == f"{REFERENCE[name][0]:,}"
        assert training == f"{network.lr:g}, {network.batch_size}, {network.epochs}"
        if name != "vgg11":
            value, _, unit = macs.partition(" ")
            counted = summarize(built(name), *network.example(1).inputs).macs
            assert float(value) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[unit] == pytest.approx(
                float(f"{counted:.3g}")
            )


def test_no_such_network():
    with pytest.raises(ValueError, match=r"no network is called 'resnet81'; perhaps resnet18"):
        network("resnet81")
