"""What the notes and the book name is reachable in d2lfast, and used by the tests named beside it."""

import importlib
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# Topic of the notes; names in d2lfast, with a dot where they are attributes; files of tests that use them.
TOPICS = [
    ("missing values", "data.house_prices.to_features data.house_prices.HousePrices", "data/test_tables.py"),
    ("house prices, k-fold", "book.k_fold", "book/test_programs.py"),
    ("tensor manipulation", "book.reshape book.concat book.numpy book.repeat", "book/test_utilities.py"),
    ("linear algebra", "book.matmul book.abs book.reduce_sum book.torch", "book/test_preliminaries.py"),
    ("autograd, backward of several values", "book.corr2d book.SGD", "book/test_preliminaries.py"),
    ("vectors instead of loops", "book.Timer", "book/test_preliminaries.py"),
    ("vanishing gradients", "book.relu nn.ReLU nn.Sigmoid nn.Tanh", "book/test_preliminaries.py"),
    ("SGD from scratch", "training.SGD", "training/test_hyperparameters.py"),
    ("torch's SGD and Adam", "models.registry.NETWORKS", "models/test_twins.py training/test_commands.py"),
    ("gradient clipping", "training.Trainer.clip_gradients book.grad_clipping",
     "training/test_trainer.py book/test_utilities.py"),
    ("parameter initialisation", "models.init_cnn book.init_normal book.my_init",
     "models/test_init.py book/test_oracles.py"),
    ("lazy layers", "training.Module.apply_init nn.LazyConv2d nn.LazyLinear",
     "training/test_trainer.py training/test_comparison.py"),
    ("linear regression", "book.LinearRegressionScratch book.LinearRegression", "book/test_programs.py"),
    ("squared loss", "nn.MSELoss book.squared_loss", "book/test_preliminaries.py"),
    ("closed form", "book.closed_form", "book/test_programs.py"),
    ("synthetic data", "data.SyntheticRegressionData", "data/test_tables.py"),
    ("training and validation parts", "data.DataModule.train_dataloader data.DataModule.val_dataloader",
     "data/test_tables.py"),
    ("weight decay", "book.WeightDecay book.WeightDecayScratch book.Data book.l2_penalty",
     "book/test_programs.py"),
    ("logistic regression, BCE", "book.LogisticRegression nn.BCELoss",
     "book/test_programs.py book/test_preliminaries.py"),
    ("the course's sigmoids", "models.sigmoids.SIGMOIDS",
     "book/test_oracles.py book/test_preliminaries.py"),
    ("softmax, cross-entropy", "book.softmax book.cross_entropy", "book/test_oracles.py"),
    ("log-softmax and likelihood", "nn.CrossEntropyLoss nn.LogSoftmax nn.NLLLoss",
     "book/test_preliminaries.py"),
    ("softmax regression", "book.SoftmaxRegression book.SoftmaxRegressionScratch", "book/test_programs.py"),
    ("accuracy", "training.Classifier.accuracy", "training/test_trainer.py"),
    ("multilayer perceptron", "book.MLP book.MLPScratch", "book/test_programs.py"),
    ("dropout", "book.dropout_layer nn.Dropout2d", "book/test_oracles.py"),
    ("dropout networks", "book.DropoutMLP book.DropoutMLPScratch", "book/test_programs.py"),
    ("corr2d, edges, flipped kernels", "corr2d", "book/test_cross_correlation.py"),
    ("convolution layer, learned kernel", "book.Conv2D", "book/test_programs.py"),
    ("padding and stride", "nn.Conv2d", "book/test_cross_correlation.py ops/test_conv2d.py"),
    ("comp_conv2d", "book.comp_conv2d", "book/test_programs.py"),
    ("several channels, 1x1", "corr2d_multi_in corr2d_multi_in_out corr2d_multi_in_out_1x1",
     "book/test_cross_correlation.py"),
    ("receptive field, multiply-adds", "summary.summarize", "models/test_summary.py"),
    ("pooling", "pool2d nn.MaxPool2d", "book/test_cross_correlation.py"),
    ("mean and global pooling", "nn.AvgPool2d nn.AdaptiveAvgPool2d", "nn/test_modules.py"),
    ("LeNet", "models.lenet book.LeNet", "training/test_comparison.py book/test_programs.py"),
    ("AlexNet", "book.AlexNet", "book/test_programs.py"),
    ("VGG, block function and class", "models.vgg_block models.VGGBlock models.VGG",
     "models/test_blocks.py"),
    ("NiN", "models.nin_block book.NiN", "models/test_blocks.py book/test_programs.py"),
    ("Inception and GoogLeNet", "models.Inception book.GoogleNet",
     "models/test_blocks.py book/test_programs.py"),
    ("the course's Inception", "models.CourseInception", "book/test_oracles.py"),
    ("batch normalisation from scratch", "models.batch_norm models.BatchNorm", "models/test_blocks.py"),
    ("BN-LeNet", "book.BNLeNet book.BNLeNetScratch", "book/test_programs.py"),
    ("layer normalisation", "nn.LayerNorm", "book/test_oracles.py"),
    ("residual blocks", "models.Residual models.ShortCut", "models/test_blocks.py"),
    ("residual networks", "book.ResNet18 book.resnet18", "book/test_programs.py"),
    ("ResNeXt, groups", "models.ResNeXtBlock", "models/test_blocks.py"),
    ("AnyNet, RegNet", "models.AnyNet book.RegNetX32", "models/test_blocks.py book/test_programs.py"),
    ("DenseNet", "book.DenseBlock book.transition_block book.DenseNet",
     "book/test_oracles.py book/test_programs.py"),
    ("first filters", "inference.pictures.filters", "training/test_commands.py"),
    ("sequences", "data.SineSeries", "data/test_tables.py"),
    ("tokens, vocabulary, windows", "data.Vocab data.tokenize data.TextData data.TimeMachine",
     "data/test_text.py"),
    ("one-hot vectors", "book.RNNLMScratch.one_hot", "book/test_programs.py"),
    ("RNN, LSTM, GRU from formulas", "book.RNNScratch book.LSTMScratch book.GRUScratch",
     "book/test_programs.py"),
    ("cells", "nn.RNNCell nn.GRUCell nn.LSTMCell", "nn/test_modules.py"),
    ("RNN, LSTM, GRU layers", "book.RNN book.LSTM book.GRU", "book/test_programs.py"),
    ("deep and bidirectional", "book.StackedRNNScratch book.BiRNNScratch book.BiGRU",
     "book/test_programs.py"),
    ("language models", "book.RNNLM book.RNNLMScratch", "book/test_programs.py"),
    ("perplexity", "training.workload.perplexity", "book/test_preliminaries.py"),
    ("hello", "models.HelloCell models.HelloRNN models.HelloEmbedding", "book/test_oracles.py"),
    ("embedding", "nn.Embedding", "book/test_preliminaries.py"),
    ("name classifier", "models.NameClassifier inference.names.guess", "models/test_sequences.py"),
    ("names", "data.Names", "data/test_tables.py"),
    ("encoder-decoder", "book.EncoderDecoder book.Seq2Seq book.Seq2SeqEncoder", "book/test_programs.py"),
    ("greedy and beam search, BLEU", "models.greedy_search models.beam_search book.bleu",
     "book/test_oracles.py"),
    ("translation data", "data.MTFraEng", "data/test_text.py"),
    ("add_to_class, hyper-parameters", "training.add_to_class training.HyperParameters",
     "training/test_hyperparameters.py"),
    ("Module, DataModule, Trainer", "training.Module training.DataModule training.Trainer",
     "training/test_trainer.py"),
    ("layer shapes", "training.Classifier.layer_summary", "training/test_trainer.py"),
    ("train_ch6, evaluation", "book.train_ch6 book.evaluate_accuracy_gpu book.try_gpu",
     "book/test_programs.py"),
    ("Dataset of the course", "data.csv_data.DiabetesDataset", "data/test_tables.py"),
    ("Fashion-MNIST", "data.read_idx data.default_images book.load_data_fashion_mnist",
     "system/test_data.py"),
    ("CIFAR-10 as a tree, folders of images", "data.cifar10.extract_cifar10 data.cifar10.ImageFolder",
     "data/test_tables.py"),
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
    used = "".join((TESTS / name).read_text(encoding="utf-8") for name in tests.split())
    for name in names.split():
        value = importlib.import_module("d2lfast")
        for part in name.split("."):
            try:
                value = getattr(value, part)
            except AttributeError:
                value = importlib.import_module(f"{value.__name__}.{part}")
        assert re.search(rf"\b{part}\b", used), f"{tests} does not use {name}"
