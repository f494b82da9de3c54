"""The book's networks, each written once over a `layers` namespace.

`layers=d2lfast.nn` (the default) builds a network from our layers, `layers=torch.nn` the same network, with
the same `state_dict` keys, from torch's. `registry.NETWORKS` names them all, with the book's settings.
"""

from d2lfast.models import builders_guide, recurrent, recurrent_scratch, registry, sigmoids
from d2lfast.models.alexnet import AlexNet
from d2lfast.models.batch_norm_scratch import BatchNorm, BNLeNetScratch, batch_norm
from d2lfast.models.course import CourseInception, CourseNet, ShortCut
from d2lfast.models.decoding import Hypothesis, beam_search, bleu, greedy_search
from d2lfast.models.densenet import DenseBlock, DenseNet, transition_block
from d2lfast.models.googlenet import GoogLeNet, Inception
from d2lfast.models.hello import HelloCell, HelloEmbedding, HelloRNN, hello_example
from d2lfast.models.init import init_cnn, init_cnn_normal, init_seq2seq, initialize
from d2lfast.models.language_model import RNNLM, LanguageModel, RNNLMScratch
from d2lfast.models.lenet import BNLeNet, LeNet, bn_lenet, lenet
from d2lfast.models.linear import (
    LinearRegression,
    LinearRegressionScratch,
    LogisticRegression,
    WeightDecayScratch,
    closed_form,
    l2_penalty,
)
from d2lfast.models.mlp import MLP, DropoutMLP, DropoutMLPScratch, MLPScratch, dropout_layer
from d2lfast.models.names import NameClassifier
from d2lfast.models.network import Network
from d2lfast.models.nin import NiN, nin_block
from d2lfast.models.regnet import AnyNet, RegNetX32
from d2lfast.models.resnet import Residual, ResNet, ResNet18
from d2lfast.models.resnext import ResNeXt, ResNeXtBlock
from d2lfast.models.softmax import SoftmaxRegression, SoftmaxRegressionScratch
from d2lfast.models.tasks import Task
from d2lfast.models.toy_lenet import ToyLeNet, toy_lenet
from d2lfast.models.translation import (
    Decoder,
    Encoder,
    EncoderDecoder,
    Seq2Seq,
    Seq2SeqDecoder,
    Seq2SeqEncoder,
)
from d2lfast.models.vgg import VGG, VGG11, VGG11_SMALL, VGGBlock, vgg_block

__all__ = [
    "MLP",
    "RNNLM",
    "VGG",
    "VGG11",
    "VGG11_SMALL",
    "AlexNet",
    "AnyNet",
    "BNLeNet",
    "BNLeNetScratch",
    "BatchNorm",
    "CourseInception",
    "CourseNet",
    "Decoder",
    "DenseBlock",
    "DenseNet",
    "DropoutMLP",
    "DropoutMLPScratch",
    "Encoder",
    "EncoderDecoder",
    "GoogLeNet",
    "HelloCell",
    "HelloEmbedding",
    "HelloRNN",
    "Hypothesis",
    "Inception",
    "LanguageModel",
    "LeNet",
    "LinearRegression",
    "LinearRegressionScratch",
    "LogisticRegression",
    "MLPScratch",
    "NameClassifier",
    "Network",
    "NiN",
    "RNNLMScratch",
    "RegNetX32",
    "ResNeXt",
    "ResNeXtBlock",
    "ResNet",
    "ResNet18",
    "Residual",
    "Seq2Seq",
    "Seq2SeqDecoder",
    "Seq2SeqEncoder",
    "ShortCut",
    "SoftmaxRegression",
    "SoftmaxRegressionScratch",
    "Task",
    "ToyLeNet",
    "VGGBlock",
    "WeightDecayScratch",
    "batch_norm",
    "beam_search",
    "bleu",
    "bn_lenet",
    "builders_guide",
    "closed_form",
    "dropout_layer",
    "greedy_search",
    "hello_example",
    "init_cnn",
    "init_cnn_normal",
    "init_seq2seq",
    "initialize",
    "l2_penalty",
    "lenet",
    "nin_block",
    "recurrent",
    "recurrent_scratch",
    "registry",
    "sigmoids",
    "toy_lenet",
    "transition_block",
    "vgg_block",
]
