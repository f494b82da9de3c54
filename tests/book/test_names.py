import inspect
import subprocess
import sys

import pytest

from d2lfast import book as d2l

# The arguments that a reader of the book passes by name or by place.
SIGNATURES = {
    "Accumulator": "n",
    "AlexNet": "lr=0.1, num_classes=10",
    "Animator": "xlabel=None, ylabel=None, legend=None, xlim=None, ylim=None",
    "AnyNet": "arch, stem_channels, lr=0.1, num_classes=10",
    "BNLeNet": "lr=0.1, num_classes=10",
    "BNLeNetScratch": "lr=0.1, num_classes=10",
    "BatchNorm": "num_features, num_dims",
    "Benchmark": "description='Done'",
    "BiGRU": "num_inputs, num_hiddens",
    "BiRNNScratch": "num_inputs, num_hiddens, sigma=0.01",
    "Conv2D": "kernel_size",
    "Data": "num_train, num_val, num_inputs, batch_size",
    "DataModule": "root='../data', num_workers=4",
    "DenseBlock": "num_convs, num_channels",
    "DenseNet": "num_channels=64, growth_rate=32, arch=(4, 4, 4, 4), lr=0.1, num_classes=10",
    "DropoutMLP": "num_outputs, num_hiddens_1, num_hiddens_2, dropout_1, dropout_2, lr",
    "DropoutMLPScratch": "num_outputs, num_hiddens_1, num_hiddens_2, dropout_1, dropout_2, lr",
    "EncoderDecoder": "encoder, decoder",
    "FashionMNIST": "batch_size=64, resize=(28, 28)",
    "GRU": "num_inputs, num_hiddens, num_layers, dropout=0",
    "GRUScratch": "num_inputs, num_hiddens, sigma=0.01",
    "GoogleNet": "lr=0.1, num_classes=10",
    "Inception": "c1, c2, c3, c4",
    "LSTM": "num_inputs, num_hiddens",
    "LSTMScratch": "num_inputs, num_hiddens, sigma=0.01",
    "LeNet": "lr=0.1, num_classes=10",
    "LinearRegression": "lr",
    "LinearRegressionScratch": "num_inputs, lr, sigma=0.01",
    "MLP": "num_outputs, num_hiddens, lr",
    "MLPScratch": "num_inputs, num_outputs, num_hiddens, lr, sigma=0.01",
    "MTFraEng": "batch_size, num_steps=9, num_train=512, num_val=128",
    "Module": "plot_train_per_epoch=2, plot_valid_per_epoch=1",
    "MyLinear": "in_units, units",
    "NiN": "lr=0.1, num_classes=10",
    "ProgressBoard": "xlabel=None, ylabel=None, xlim=None, ylim=None, xscale='linear', yscale='linear'",
    "RNN": "num_inputs, num_hiddens",
    "RNNLM": "rnn, vocab_size, lr=0.01",
    "RNNLMScratch": "rnn, vocab_size, lr=0.01",
    "RNNScratch": "num_inputs, num_hiddens, sigma=0.01",
    "RegNetX32": "lr=0.1, num_classes=10",
    "ResNeXtBlock": "num_channels, groups, bot_mul, use_1x1conv=False, strides=1",
    "ResNet": "arch, lr=0.1, num_classes=10",
    "ResNet18": "lr=0.1, num_classes=10",
    "Residual": "num_channels, use_1x1conv=False, strides=1",
    "SGD": "params, lr",
    "Seq2Seq": "encoder, decoder, tgt_pad, lr",
    "Seq2SeqDecoder": "vocab_size, embed_size, num_hiddens, num_layers, dropout=0",
    "Seq2SeqEncoder": "vocab_size, embed_size, num_hiddens, num_layers, dropout=0",
    "SoftmaxRegression": "num_outputs, lr",
    "SoftmaxRegressionScratch": "num_inputs, num_outputs, lr, sigma=0.01",
    "StackedRNNScratch": "num_inputs, num_hiddens, num_layers, sigma=0.01",
    "SyntheticRegressionData": "w, b, noise=0.01, num_train=1000, num_val=1000, batch_size=32",
    "TimeMachine": "batch_size, num_steps, num_train=10000, num_val=5000",
    "Trainer": "max_epochs, num_gpus=0, gradient_clip_val=0",
    "VGG": "arch, lr=0.1, num_classes=10",
    "Vocab": "tokens=(), min_freq=0, reserved_tokens=()",
    "WeightDecay": "wd, lr",
    "WeightDecayScratch": "num_inputs, lambd, lr, sigma=0.01",
    "add_to_class": "Class",
    "allreduce": "data",
    "batch_norm": "X, gamma, beta, moving_mean, moving_var, eps, momentum",
    "bleu": "pred_seq, label_seq, k",
    "comp_conv2d": "conv2d, X",
    "download": "url, folder='../data', sha1_hash=None",
    "download_extract": "name, folder=None",
    "evaluate_accuracy_gpu": "net, data_iter, device=None",
    "extract": "filename, folder=None",
    "get_params": "params, device",
    "init_cnn": "module",
    "init_seq2seq": "module",
    "load_data_fashion_mnist": "batch_size, resize=None",
    "load_data_nmt": "batch_size, num_steps, num_examples=600",
    "nin_block": "out_channels, kernel_size, strides, padding",
    "plot": "X, Y=None, xlabel=None, ylabel=None, legend=(), xlim=None, ylim=None",
    "pool2d": "X, pool_size, mode='max'",
    "predict_seq2seq": "net, src_sentence, src_vocab, tgt_vocab, num_steps, device",
    "resnet18": "num_classes, in_channels=1",
    "sequence_mask": "X, valid_len, value=0",
    "show_images": "imgs, num_rows, num_cols, titles=None, scale=1.5",
    "show_list_len_pair_hist": "legend, xlabel, ylabel, xlist, ylist",
    "split_batch": "X, y, devices",
    "train": "num_gpus, batch_size, lr",
    "train_batch": "X, y, device_params, devices, lr",
    "train_ch6": "net, train_iter, test_iter, num_epochs, lr, device",
    "train_seq2seq": "net, data_iter, lr, num_epochs, tgt_vocab, device",
    "transition_block": "num_channels",
    "truncate_pad": "line, num_steps, padding_token",
    "try_gpu": "i=0",
    "vgg_block": "num_convs, out_channels",
}


def arguments(name):
    text = []
    for parameter in inspect.signature(getattr(d2l, name)).parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
            text.append(parameter.name + default)
    return text


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_books_arguments(name):
    expected = SIGNATURES[name].replace("(28, 28)", "(28; 28)").replace("(4, 4, 4, 4)", "(4; 4; 4; 4)")
    expected = [part.replace("; ", ", ") for part in expected.split(", ")]
    actual = arguments(name)[: len(expected)]
    # A default where the book has none, and 0.0 for 0, take nothing from a reader.
    for book, ours in zip(expected, actual, strict=True):
        assert ours.split("=")[0] == book.split("=")[0]
        if "=" in book and not book.endswith("=0"):
            assert ours == book


def test_every_name_is_there_and_documented():
    for name in d2l.__all__:
        value = getattr(d2l, name)
        if inspect.isclass(value) or (inspect.isfunction(value) and value.__module__.startswith("d2lfast")):
            assert value.__doc__, name
    assert set(d2l.__all__) <= set(dir(d2l))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        d2l.nonsense  # noqa: B018


def test_the_books_methods():
    for name, methods in {
        "HyperParameters": "save_hyperparameters",
        "ProgressBoard": "draw",
        "Module": "loss forward plot training_step validation_step configure_optimizers apply_init",
        "DataModule": "get_dataloader train_dataloader val_dataloader get_tensorloader",
        "Trainer": "prepare_data prepare_model prepare_batch fit fit_epoch clip_gradients",
        "Classifier": "validation_step accuracy loss layer_summary",
        "SGD": "step zero_grad",
        "RNNLMScratch": "init_params one_hot output_layer forward predict",
        "LinearRegression": "get_w_b",
        "EncoderDecoder": "forward predict_step",
        "Decoder": "init_state forward",
        "FashionMNIST": "text_labels get_dataloader visualize",
        "Vocab": "to_tokens unk",
        "TimeMachine": "build _download _preprocess _tokenize",
        "MTFraEng": "build",
        "Timer": "start stop avg sum cumsum",
        "Accumulator": "add reset",
    }.items():
        assert all(hasattr(getattr(d2l, name), method) for method in methods.split()), name


def test_importing_needs_none_of_the_books_packages():
    code = (
        "import sys, torch\n"
        "missing = 'torchvision pandas scipy IPython matplotlib requests sklearn rich'\n"
        "for name in missing.split():\n"
        "    sys.modules[name] = None\n"
        "from d2lfast import book as d2l\n"
        "for name in sorted(set(d2l.__all__) - {'plt'}): getattr(d2l, name)\n"
        "model = d2l.LinearRegression(lr=0.03)\n"
        "data = d2l.SyntheticRegressionData(d2l.tensor([2, -3.4]), 4.2, batch_size=500)\n"
        "d2l.Trainer(max_epochs=1).fit(model, data)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_module_itself_loads_no_models():
    code = "import sys; from d2lfast import book; assert 'd2lfast.book.convolutional' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
