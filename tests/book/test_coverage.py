"""What the notes and the book name is reachable in d2lfast, and used by the tests named beside it."""

import importlib
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# Topic of the notes; names in d2lfast, with a dot where they are attributes; a file of tests that uses them.
TOPICS = [
    ("data preprocessing, missing values", "data.house_prices.to_features", "data/test_tables.py"),
    ("house prices, k-fold", "book.k_fold data.house_prices.HousePrices", "book/test_programs.py"),
    ("tensor manipulation", "book.arange book.reshape book.concat book.numpy", "book/test_utilities.py"),
    ("SGD from scratch", "training.SGD", "training/test_hyperparameters.py"),
    ("gradient clipping", "training.Trainer.clip_gradients", "training/test_trainer.py"),
    ("parameter initialisation", "models.init_cnn book.init_normal book.my_init", "book/test_oracles.py"),
    ("lazy layers", "training.Module.apply_init nn.LazyConv2d", "training/test_trainer.py"),
    ("linear regression", "book.LinearRegressionScratch book.LinearRegression", "book/test_programs.py"),
    ("closed form", "book.closed_form", "book/test_programs.py"),
    ("synthetic data", "data.SyntheticRegressionData", "data/test_tables.py"),
    ("weight decay", "book.WeightDecay book.WeightDecayScratch book.Data", "book/test_programs.py"),
    ("logistic regression, BCE", "book.LogisticRegression nn.BCELoss", "book/test_programs.py"),
    ("the course's sigmoids", "models.sigmoids", "book/test_oracles.py"),
    ("softmax, cross-entropy", "book.softmax book.cross_entropy book.SoftmaxRegression",
     "book/test_programs.py"),
    ("accuracy", "training.Classifier.accuracy book.accuracy", "training/test_trainer.py"),
    ("multilayer perceptron", "book.MLP book.MLPScratch", "book/test_programs.py"),
    ("dropout", "book.dropout_layer book.DropoutMLP nn.Dropout2d", "book/test_oracles.py"),
    ("corr2d", "corr2d book.corr2d", "book/test_cross_correlation.py"),
    ("convolution layer", "book.Conv2D nn.Conv2d", "book/test_programs.py"),
    ("padding and stride", "book.comp_conv2d", "book/test_programs.py"),
    ("several channels, 1x1", "corr2d_multi_in corr2d_multi_in_out corr2d_multi_in_out_1x1",
     "book/test_cross_correlation.py"),
    ("pooling", "pool2d nn.MaxPool2d nn.AvgPool2d nn.AdaptiveAvgPool2d", "ops"),
    ("LeNet", "models.LeNet book.LeNet", "models"),
    ("AlexNet", "models.AlexNet book.AlexNet", "book/test_programs.py"),
    ("VGG, block function and class", "book.vgg_block book.VGGBlock book.VGG", "book/test_programs.py"),
    ("NiN", "book.nin_block book.NiN", "book/test_programs.py"),
    ("Inception and GoogLeNet", "book.Inception book.GoogleNet", "book/test_programs.py"),
    ("the course's Inception and net", "models.CourseInception models.CourseNet", "book/test_oracles.py"),
    ("batch normalisation from scratch", "book.batch_norm book.BatchNorm book.BNLeNetScratch",
     "book/test_oracles.py"),
    ("BN-LeNet", "book.BNLeNet", "book/test_programs.py"),
    ("layer normalisation", "nn.LayerNorm", "book/test_oracles.py"),
    ("residual networks", "book.Residual book.ResNet18 book.resnet18", "book/test_programs.py"),
    ("the course's ShortCut", "models.ShortCut", "book/test_oracles.py"),
    ("ResNeXt", "book.ResNeXtBlock book.ResNeXt", "book/test_oracles.py"),
    ("AnyNet, RegNet", "book.AnyNet book.RegNetX32", "book/test_programs.py"),
    ("DenseNet", "book.DenseBlock book.transition_block book.DenseNet", "book/test_programs.py"),
    ("tokens, vocabulary, windows", "data.Vocab data.tokenize data.TextData data.TimeMachine",
     "data/test_text.py"),
    ("RNN, LSTM, GRU from formulas", "book.RNNScratch book.LSTMScratch book.GRUScratch",
     "book/test_programs.py"),
    ("RNN, LSTM, GRU layers", "book.RNN book.LSTM book.GRU nn.RNNCell", "book/test_programs.py"),
    ("deep and bidirectional", "book.StackedRNNScratch book.BiRNNScratch book.BiGRU",
     "book/test_programs.py"),
    ("perplexity, language models", "book.RNNLM book.RNNLMScratch", "book/test_programs.py"),
    ("hello", "models.HelloCell models.HelloRNN models.HelloEmbedding", "book/test_oracles.py"),
    ("name classifier", "models.NameClassifier data.Names inference.names.guess", "data/test_tables.py"),
    ("encoder-decoder", "book.EncoderDecoder book.Seq2Seq book.Seq2SeqEncoder", "book/test_programs.py"),
    ("greedy and beam search, BLEU", "models.greedy_search models.beam_search book.bleu",
     "book/test_oracles.py"),
    ("translation data", "data.MTFraEng", "data/test_text.py"),
    ("add_to_class, hyper-parameters", "book.add_to_class book.HyperParameters",
     "training/test_hyperparameters.py"),
    ("Module, DataModule, Trainer", "book.Module book.DataModule book.Trainer", "training/test_trainer.py"),
    ("train_ch6 and its like", "book.train_ch6 book.load_data_fashion_mnist book.try_gpu",
     "book/test_programs.py"),
    ("Dataset of the course", "data.csv_data.DiabetesDataset", "data/test_tables.py"),
    ("Fashion-MNIST", "data.FashionMNIST data.read_idx", "system/test_data.py"),
    ("CIFAR-10 as a tree", "data.cifar10.extract_cifar10 data.cifar10.ImageFolder", "data/test_tables.py"),
    ("augmentation", "data.augmentation.RandomHorizontalFlip data.augmentation.ColorJitter",
     "data/test_images.py"),
    ("devices", "book.try_gpu book.try_all_gpus book.num_gpus", "book/test_utilities.py"),
    ("several devices", "book.allreduce book.split_batch book.train_batch", "book/test_programs.py"),
    ("data-parallel processes", "training.distributed.own_part", "training/test_distributed.py"),
    ("builder's guide", "book.MySequential book.NestMLP book.FixedHiddenMLP book.MyLinear",
     "book/test_oracles.py"),
]  # fmt: skip


@pytest.mark.parametrize(("topic", "names", "tests"), TOPICS, ids=[topic for topic, *_ in TOPICS])
def test_is_reachable_and_tested(topic, names, tests):
    used = ""
    for path in sorted((TESTS / tests).rglob("*.py")) if (TESTS / tests).is_dir() else [TESTS / tests]:
        used += path.read_text(encoding="utf-8")
    for name in names.split():
        value = importlib.import_module("d2lfast")
        for part in name.split("."):
            try:
                value = getattr(value, part)
            except AttributeError:
                value = importlib.import_module(f"{value.__name__}.{part}")
    assert any(name.split(".")[-1] in used for name in names.split()), f"{tests} uses none of {names}"
