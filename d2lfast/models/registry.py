"""Every network by name, with the book's settings.

The command line, the benchmarks and the tests iterate over `NETWORKS`.
"""

import difflib
from functools import partial
from typing import Any

import d2lfast.nn
from d2lfast.models import recurrent, recurrent_scratch
from d2lfast.models.alexnet import AlexNet
from d2lfast.models.batch_norm_scratch import BNLeNetScratch
from d2lfast.models.course import CourseNet
from d2lfast.models.densenet import DenseNet
from d2lfast.models.googlenet import GoogLeNet
from d2lfast.models.hello import HelloCell, HelloEmbedding, HelloRNN
from d2lfast.models.init import init_cnn, init_cnn_normal
from d2lfast.models.language_model import RNNLM, RNNLMScratch
from d2lfast.models.lenet import BNLeNet, LeNet
from d2lfast.models.linear import LinearRegression, LinearRegressionScratch, LogisticRegression
from d2lfast.models.mlp import MLP, DropoutMLP, DropoutMLPScratch, MLPScratch
from d2lfast.models.names import NameClassifier
from d2lfast.models.network import Builder, Network
from d2lfast.models.nin import NiN
from d2lfast.models.regnet import RegNetX32
from d2lfast.models.resnet import ResNet18
from d2lfast.models.resnext import ResNeXt
from d2lfast.models.softmax import SoftmaxRegression, SoftmaxRegressionScratch, cross_entropy
from d2lfast.models.tasks import Task
from d2lfast.models.toy_lenet import ToyLeNet
from d2lfast.models.translation import Seq2Seq
from d2lfast.models.vgg import VGG, VGG11, VGG11_SMALL

__all__ = ["NETWORKS", "Network", "network"]


def network(name: str) -> Network:
    """Return the network of that name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    try:
        return NETWORKS[name]
    except KeyError:
        close = difflib.get_close_matches(name, NETWORKS, n=3) or NETWORKS
        raise ValueError(f"no network is called {name!r}; perhaps {', '.join(close)}") from None


def _regression(name: str, builder: Builder, section: str, **rest: Any) -> Network:
    settings: dict[str, Any] = {
        "data": "synthetic-regression", "shape": (2,), "lr": 0.03, "batch_size": 32, "epochs": 3, **rest
    }  # fmt: skip
    return Network(name, builder, section, Task.REGRESSION, **settings)


def _images(name: str, builder: Builder, section: str, lr: float, size: int = 28, **rest: Any) -> Network:
    return Network(
        name, builder, section, Task.CLASSIFICATION, "fashion-mnist", (1, size, size), lr, outputs=10, **rest
    )


def _dense(kind: Any) -> Builder:
    """Builds a network of linear layers for 28x28 images."""

    def build(num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> Any:
        return kind(num_outputs=num_classes, num_inputs=784 * in_channels, layers=layers)

    return build


def _vgg(arch: Any) -> Builder:
    def build(
        num_classes: int = 10, in_channels: int = 1, *, image_size: int = 224, layers: Any = d2lfast.nn
    ) -> VGG:
        return VGG(arch, num_classes, in_channels, image_size=image_size, layers=layers)

    return build


def _densenet(num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> DenseNet:
    return DenseNet(num_classes=num_classes, in_channels=in_channels, layers=layers)


def _resnext(num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> ResNeXt:
    return ResNeXt(num_classes=num_classes, in_channels=in_channels, layers=layers)


def _resnet18_small(num_classes: int = 10, in_channels: int = 1, *, layers: Any = d2lfast.nn) -> ResNet18:
    return ResNet18(num_classes, in_channels, small_stem=True, layers=layers)


def _language_model(
    name: str, kind: Any, section: str, lr: float = 1.0, epochs: int = 100, **rest: Any
) -> Network:
    scratch = kind.__module__ == recurrent_scratch.__name__

    def build(vocab_size: int = 28, num_hiddens: int = 32, *, layers: Any = d2lfast.nn, **sizes: Any) -> Any:
        if scratch:
            return RNNLMScratch(kind(vocab_size, num_hiddens, **{**rest, **sizes}), vocab_size)
        rnn = kind(vocab_size, num_hiddens, **{**rest, **sizes}, layers=layers)
        return RNNLM(rnn, vocab_size, layers=layers)

    return Network(
        name, build, section, Task.LANGUAGE_MODEL, "time-machine", (32,), lr, batch_size=1024,
        epochs=epochs, clip=1.0, input_tokens=28, outputs=28,
    )  # fmt: skip


def _hello(name: str, builder: Builder) -> Network:
    return Network(
        name, builder, "course", Task.LANGUAGE_MODEL, "hello", (5,), 0.05, batch_size=1, epochs=15,
        optimizer="adam", input_tokens=4, outputs=4,
    )  # fmt: skip


_LINEAR = (
    _regression("linear-scratch", LinearRegressionScratch, "3.4"),
    _regression("linear", LinearRegression, "3.5"),
    _regression(
        "weight-decay", partial(LinearRegression, num_inputs=200), "3.7",
        data="weight-decay", shape=(200,), lr=0.01, batch_size=5, epochs=10, weight_decay=3.0,
    ),
    Network(
        "logistic", LogisticRegression, "course", Task.BINARY, "diabetes", (8,), 0.1, batch_size=64,
        epochs=100,
    ),
)  # fmt: skip

_IMAGES = (
    _images(
        "softmax-scratch", _dense(SoftmaxRegressionScratch), "4.4", 0.1, batch_size=256,
        criterion=cross_entropy,
    ),
    _images("softmax", _dense(SoftmaxRegression), "4.5", 0.1, batch_size=256),
    _images("mlp-scratch", _dense(MLPScratch), "5.2", 0.1, batch_size=256),
    _images("mlp", _dense(MLP), "5.2", 0.1, batch_size=256),
    _images("dropout-mlp-scratch", _dense(DropoutMLPScratch), "5.6", 0.1, batch_size=256),
    _images("dropout-mlp", _dense(DropoutMLP), "5.6", 0.1, batch_size=256),
    _images("lenet", LeNet, "7.6", 0.1, init=init_cnn),
    _images("alexnet", AlexNet, "8.1", 0.01, 224),
    _images("vgg11", _vgg(VGG11), "8.2", 0.01, 224, init=init_cnn),
    _images("vgg11-small", _vgg(VGG11_SMALL), "8.2", 0.01, 224, init=init_cnn),
    _images("nin", NiN, "8.3", 0.05, 224, init=init_cnn),
    _images("googlenet", GoogLeNet, "8.4", 0.01, 96, init=init_cnn),
    _images("bn-lenet-scratch", BNLeNetScratch, "8.5", 0.1, init=init_cnn),
    _images("bn-lenet", BNLeNet, "8.5", 0.1, init=init_cnn),
    _images("resnet18", ResNet18, "8.6", 0.01, 96, init=init_cnn),
    _images("resnext", _resnext, "8.6", 0.01, 96, init=init_cnn),
    _images("densenet", _densenet, "8.7", 0.01, 96),
    _images("regnetx32", RegNetX32, "8.8", 0.05, 96),
    _images("toy-lenet", ToyLeNet, "13.5", 0.2, batch_size=256),
    _images("resnet18-small", _resnet18_small, "13.6", 0.1, batch_size=256, init=init_cnn_normal),
    _images("course-net", CourseNet, "course", 0.01, batch_size=64),
)  # fmt: skip

_SEQUENCES = (
    _language_model("rnn-scratch", recurrent_scratch.RNNScratch, "9.5"),
    _language_model("rnn", recurrent.RNN, "9.6"),
    _language_model("lstm-scratch", recurrent_scratch.LSTMScratch, "10.1", 4.0, 50),
    _language_model("lstm", recurrent.LSTM, "10.1", 4.0, 50),
    _language_model("gru-scratch", recurrent_scratch.GRUScratch, "10.2", 4.0, 50),
    _language_model("gru", recurrent.GRU, "10.2", 4.0, 50),
    _language_model("deep-rnn-scratch", recurrent_scratch.StackedRNNScratch, "10.3", 2.0, num_layers=2),
    _language_model("deep-gru", recurrent.GRU, "10.3", 2.0, num_layers=2),
    _language_model("bi-rnn-scratch", recurrent_scratch.BiRNNScratch, "10.4"),
    _language_model("bi-gru", recurrent.BiGRU, "10.4"),
    _hello("hello-cell", HelloCell),
    _hello("hello-rnn", HelloRNN),
    _hello("hello-embedding", HelloEmbedding),
    Network(
        "names", NameClassifier, "course", Task.NAMES, "names", (19,), 0.001, batch_size=256, epochs=100,
        optimizer="adam", input_tokens=128, outputs=18,
    ),
    Network(
        "seq2seq", Seq2Seq, "10.7", Task.TRANSLATION, "translation", (9,), 0.005, epochs=30,
        optimizer="adam", clip=1.0, input_tokens=194, outputs=214,
    ),
)  # fmt: skip

NETWORKS: dict[str, Network] = {entry.name: entry for entry in (*_LINEAR, *_IMAGES, *_SEQUENCES)}
