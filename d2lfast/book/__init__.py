"""The names that a reader of *Dive into Deep Learning* knows: `from d2lfast import book as d2l`.

They replace those of `from d2l import torch as d2l` in chapters 3 to 10 and 13.5 to 13.6; differences are in
docs/book.md. A name is imported when it is used, so that nothing is needed that a program does not ask for.
"""

import importlib
from typing import Any

# Where each name is defined.
_HOMES = {
    "d2lfast": "corr2d corr2d_multi_in corr2d_multi_in_out corr2d_multi_in_out_1x1 pool2d",
    "d2lfast.training": "Classifier DataModule HyperParameters Module ProgressBoard SGD Trainer add_to_class",
    "d2lfast.data": "FashionMNIST MTFraEng SyntheticRegressionData TimeMachine Vocab tokenize truncate_pad",
    "d2lfast.data.show": "show_images",
    "d2lfast.data.house_prices": "HousePrices",
    "d2lfast.data.cifar10": "ImageFolder extract_cifar10",
    "d2lfast.data.csv_data": "CSVDataset DiabetesDataset",
    "d2lfast.data.names": "Names",
    "d2lfast.models": (
        "BatchNorm CourseInception CourseNet Decoder DenseBlock Encoder Inception NameClassifier "
        "ResNeXtBlock Residual Seq2SeqDecoder Seq2SeqEncoder ShortCut VGGBlock batch_norm beam_search bleu "
        "closed_form greedy_search init_cnn init_seq2seq nin_block transition_block vgg_block"
    ),
    "d2lfast.models.recurrent": "GRU LSTM RNN BiGRU",
    "d2lfast.models.recurrent_scratch": "BiRNNScratch GRUScratch LSTMScratch RNNScratch StackedRNNScratch",
    "d2lfast.models.builders_guide": "CenteredLayer FixedHiddenMLP MyLinear MySequential NestMLP",
    "d2lfast.models.init": "init_42 init_constant init_normal init_xavier my_init",
    "d2lfast.book.classifiers": (
        "DropoutMLP DropoutMLPScratch MLP MLPScratch SoftmaxRegression SoftmaxRegressionScratch "
        "cross_entropy dropout_layer relu softmax"
    ),
    "d2lfast.book.convolutional": (
        "AlexNet AnyNet BNLeNet BNLeNetScratch Conv2D DenseNet GoogLeNet GoogleNet LeNet NiN RegNetX32 "
        "ResNeXt ResNet ResNet18 VGG comp_conv2d resnet18"
    ),
    "d2lfast.book.devices": "cpu gpu num_gpus try_all_gpus try_gpu",
    "d2lfast.book.hub": "DATA_HUB DATA_URL download download_extract extract",
    "d2lfast.book.language": "RNNLM RNNLMScratch",
    "d2lfast.book.linear": (
        "LinearRegression LinearRegressionScratch LogisticRegression WeightDecay WeightDecayScratch k_fold "
        "l2_penalty"
    ),
    "d2lfast.book.multi_gpu": "allreduce get_params train train_batch",
    "d2lfast.book.old": (
        "accuracy evaluate_accuracy evaluate_accuracy_gpu evaluate_loss get_dataloader_workers "
        "get_fashion_mnist_labels grad_clipping linreg load_array load_data_fashion_mnist sgd squared_loss "
        "synthetic_data train_ch6"
    ),
    "d2lfast.book.old_translation": (
        "MaskedSoftmaxCELoss build_array_nmt load_data_nmt predict_seq2seq preprocess_nmt read_data_nmt "
        "sequence_mask tokenize_nmt train_seq2seq"
    ),
    "d2lfast.book.plotting": "Animator plot set_axes set_figsize show_list_len_pair_hist use_svg_display",
    "d2lfast.book.seq2seq": "EncoderDecoder Seq2Seq",
    "d2lfast.book.tensors": (
        "abs arange argmax astype batch_matmul concat cos cosh exp expand_dims eye float32 int32 int64 "
        "linspace log matmul meshgrid nn_Module normal numpy ones ones_like rand randn reduce_mean "
        "reduce_sum repeat reshape "
        "sigmoid sin sinh size stack swapaxes tanh tensor to transpose zeros zeros_like"
    ),
    "d2lfast.book.utilities": "Accumulator Benchmark Timer check_len check_shape split_batch",
}
_WHERE = {name: (home, name) for home, names in _HOMES.items() for name in names.split()}
# Other names for the same, and the modules that the book's programs reach through d2l.
_WHERE |= {
    "Data": ("d2lfast.data", "WeightDecayData"),
    "KaggleHouse": ("d2lfast.data.house_prices", "HousePrices"),
    "F": ("d2lfast.nn", "functional"),
    "np": ("numpy", ""),
    "nn": ("d2lfast.nn", ""),
    "torch": ("torch", ""),
    "plt": ("matplotlib.pyplot", ""),
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    try:
        home, original = _WHERE[name]
    except KeyError:
        raise AttributeError(f"module 'd2lfast.book' has no attribute {name!r}") from None
    module = importlib.import_module(home)
    value = getattr(module, original) if original else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
