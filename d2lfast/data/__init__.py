"""Data sets as tensors in memory, and batches of them."""

from d2lfast.data.digits import digits
from d2lfast.data.fashion_mnist import fashion_mnist
from d2lfast.data.idx import read_idx
from d2lfast.data.image_data import FashionMNIST, ImageData
from d2lfast.data.images import Images, default_images
from d2lfast.data.loader import TensorLoader
from d2lfast.data.module import DataModule
from d2lfast.data.names import Names
from d2lfast.data.synthetic import SineSeries, SyntheticRegressionData, WeightDecayData
from d2lfast.data.text import TextData, TimeMachine, english_text
from d2lfast.data.translation import MTFraEng
from d2lfast.data.vocab import Vocab, tokenize, truncate_pad

__all__ = [
    "DataModule",
    "FashionMNIST",
    "ImageData",
    "Images",
    "MTFraEng",
    "Names",
    "SineSeries",
    "SyntheticRegressionData",
    "TensorLoader",
    "TextData",
    "TimeMachine",
    "Vocab",
    "WeightDecayData",
    "default_images",
    "digits",
    "english_text",
    "fashion_mnist",
    "read_idx",
    "tokenize",
    "truncate_pad",
]
