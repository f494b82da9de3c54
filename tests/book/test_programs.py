"""The programs of the chapters, on small data."""

import pytest
import torch
from torch import nn

from d2lfast import book as d2l
from d2lfast.data import ImageData, Images, TextData


@pytest.fixture(autouse=True)
def one_thread(torch_state):
    torch.set_num_threads(1)


def stripes(count=64, size=28):
    labels = torch.arange(count) % 10
    pictures = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) * 0.2
    for picture, label in zip(pictures, labels):
        picture[0, 2 * label : 2 * label + 3] += 0.8
    return pictures, labels


def images(batch_size=16, count=64):
    return ImageData(
        Images("stripes", "memory", tuple("0123456789"), *stripes(count), *stripes(20)), batch_size
    )


@pytest.mark.parametrize(
    ("model", "tolerance"),
    [(lambda: d2l.LinearRegressionScratch(2, 0.03), 0.3), (lambda: d2l.LinearRegression(0.03), 0.05)],
)
def test_linear_regression(model, tolerance):
    w, b = torch.tensor([2.0, -3.4]), 4.2
    data = d2l.SyntheticRegressionData(w, b)
    model, trainer = model(), d2l.Trainer(max_epochs=3)
    trainer.fit(model, data)
    if isinstance(model, d2l.LinearRegression):
        found_w, found_b = model.get_w_b()
    else:
        found_w, found_b = model.w, model.b
    torch.testing.assert_close(found_w.detach().flatten(), w, atol=tolerance, rtol=0)
    assert found_b.item() == pytest.approx(b, abs=tolerance)
    assert set(model.board.data) == {"train_loss", "val_loss"}
    closed = d2l.closed_form(data.X[:1000], data.y[:1000])
    torch.testing.assert_close(closed[0].flatten(), w, atol=5e-3, rtol=0)


def test_the_lazy_layer_begins_as_the_book_means_it():
    model = d2l.LinearRegression(0.03)
    model(torch.ones(4, 500))
    assert type(model.net) is nn.Linear
    assert model.net.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert model.net.bias.item() == 0


def test_weight_decay():
    norms = []
    for model in (
        d2l.WeightDecayScratch(200, 0, 0.01),
        d2l.WeightDecayScratch(200, 3, 0.01),
        d2l.WeightDecay(wd=3, lr=0.01),
    ):
        data = d2l.Data(num_train=20, num_val=100, num_inputs=200, batch_size=5)
        d2l.Trainer(max_epochs=10).fit(model, data)
        norms.append(d2l.l2_penalty(model.get_w_b()[0] if hasattr(model, "get_w_b") else model.w).item())
    assert norms[1] < 0.5 * norms[0]
    # With the loss not halved, the data weigh twice as much against the decay.
    assert norms[2] < 0.05


@pytest.mark.parametrize(
    "model",
    [
        lambda: d2l.SoftmaxRegressionScratch(784, 10, 0.1),
        lambda: d2l.SoftmaxRegression(10, 0.1),
        lambda: d2l.MLPScratch(784, 10, 32, 0.1),
        lambda: d2l.MLP(10, 32, 0.1),
        lambda: d2l.DropoutMLPScratch(10, 32, 32, 0.1, 0.1, 0.1),
        lambda: d2l.DropoutMLP(10, 32, 32, 0.1, 0.1, 0.1),
        lambda: d2l.BNLeNet(0.1),
        lambda: d2l.BNLeNetScratch(0.1),
    ],
)
def test_classifiers_learn(model):
    model, trainer = model(), d2l.Trainer(max_epochs=12)
    trainer.fit(model, images())
    assert trainer.history[-1].loss < 0.9 * trainer.history[0].loss
    assert 0 <= trainer.history[-1].validation_accuracy <= 1
    assert [point.x for point in model.board.data["val_acc"]] == list(range(1, 13))


@pytest.mark.parametrize(
    ("model", "size", "parameters"),
    [
        (lambda: d2l.LeNet(), 28, 61_706),
        (lambda: d2l.AlexNet(), 224, 46_764_746),
        (lambda: d2l.VGG(((1, 16), (1, 32), (2, 64), (2, 128), (2, 128))), 224, 43_093_322),
        (lambda: d2l.NiN(), 224, 1_992_166),
        (lambda: d2l.GoogleNet(), 96, 5_977_530),
        (lambda: d2l.BNLeNet(), 28, 44_878),
        (lambda: d2l.ResNet18(), 96, 11_178_378),
        (lambda: d2l.DenseNet(), 96, 758_226),
        (lambda: d2l.RegNetX32(), 96, 179_290),
        (lambda: d2l.resnet18(10), 28, 11_175_818),
    ],
)
def test_convolutional_networks_have_the_books_sizes(model, size, parameters):
    model = model().eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    with torch.no_grad():
        assert model(torch.rand(1, 1, size, size)).shape == (1, 10)
    if isinstance(model, d2l.Classifier):
        model.apply_init([torch.rand(1, 1, size, size)], d2l.init_cnn)
        for weight in (p for p in model.parameters() if p.dim() > 1):
            fans = nn.init._calculate_fan_in_and_fan_out(weight)
            assert weight.abs().max().item() == pytest.approx((6 / sum(fans)) ** 0.5, rel=0.1)


def test_conv2d_learns_the_edge_detector():
    X = torch.ones(6, 8)
    X[:, 2:6] = 0
    conv = d2l.Conv2D((1, 2))
    assert conv(X).shape == (6, 7)
    assert d2l.comp_conv2d(nn.LazyConv2d(1, kernel_size=3, padding=1), torch.rand(8, 8)).shape == (8, 8)
    assert d2l.comp_conv2d(
        nn.LazyConv2d(1, (3, 5), padding=(0, 1), stride=(3, 4)), torch.rand(8, 8)
    ).shape == (2, 2)


RNNS = {
    "rnn": (lambda n: d2l.RNNScratch(n, 16), lambda n: d2l.RNN(n, 16)),
    "lstm": (lambda n: d2l.LSTMScratch(n, 16), lambda n: d2l.LSTM(n, 16)),
    "gru": (lambda n: d2l.GRUScratch(n, 16), lambda n: d2l.GRU(n, 16, 1)),
    "deep": (lambda n: d2l.StackedRNNScratch(n, 16, 2), lambda n: d2l.GRU(n, 16, 2)),
    "bi": (lambda n: d2l.BiRNNScratch(n, 16), lambda n: d2l.BiGRU(n, 16)),
}


@pytest.mark.parametrize("scratch", [True, False])
@pytest.mark.parametrize("cell", RNNS)
def test_language_models_learn(cell, scratch):
    torch.manual_seed(1)
    data = TextData("the time traveller " * 30, batch_size=32, num_steps=8, num_train=256, num_val=64)
    n = len(data.vocab)
    rnn = RNNS[cell][0 if scratch else 1](n)
    model = (d2l.RNNLMScratch if scratch else d2l.RNNLM)(rnn, n, lr=1)
    trainer = d2l.Trainer(max_epochs=8, gradient_clip_val=1)
    trainer.fit(model, data)
    assert set(model.board.data) == {"train_ppl", "val_ppl"}
    assert model.board.data["train_ppl"][-1].y < 0.9 * model.board.data["train_ppl"][0].y
    text = model.predict("the ti", 5, data.vocab, d2l.try_gpu())
    assert text.startswith("the ti")
    assert len(text) == 11


def test_tokens_and_one_hot_inputs_give_the_same():
    class Own(d2l.RNNLM):
        def one_hot(self, X):
            return super().one_hot(X)

    torch.manual_seed(0)
    X = torch.randint(9, (3, 5))
    for kind in (d2l.RNN, d2l.LSTM, d2l.GRU, d2l.BiGRU):
        model, own = d2l.RNNLM(kind(9, 8), 9), Own(kind(9, 8), 9)
        model(X), own(X)
        own.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(X), own(X))


def test_predict_goes_token_by_token():
    torch.manual_seed(0)
    data = TextData("the time traveller " * 30, 32, 8, 100, 10)
    model = d2l.RNNLM(d2l.GRU(len(data.vocab), 8, 2), len(data.vocab))
    tokens = data.vocab[list("time")]
    with torch.no_grad():
        for _ in range(6):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert model.predict("time", 6, data.vocab) == "".join(data.vocab.to_tokens(tokens))
    with pytest.raises(ValueError, match="empty"):
        model.predict("", 3, data.vocab)


PAIRS = [
    ("go .", "va !"),
    ("i lost .", "j'ai perdu ."),
    ("he's calm .", "il est calme ."),
    ("i'm home .", "je suis chez moi ."),
]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    folder = tmp_path / "fra-eng"
    folder.mkdir()
    (folder / "fra.txt").write_text("\n".join(f"{en}\t{fr}" for en, fr in PAIRS * 8), encoding="utf-8")
    monkeypatch.setenv("D2LFAST_DATA", str(tmp_path))


def test_translation(pairs):
    torch.manual_seed(0)
    data = d2l.MTFraEng(batch_size=8, num_steps=7, num_train=24, num_val=8)
    encoder = d2l.Seq2SeqEncoder(len(data.src_vocab), 16, 24, 2, 0.1)
    decoder = d2l.Seq2SeqDecoder(len(data.tgt_vocab), 16, 24, 2, 0.1)
    model = d2l.Seq2Seq(encoder, decoder, data.tgt_vocab["<pad>"], lr=0.02)
    trainer = d2l.Trainer(max_epochs=30, gradient_clip_val=1)
    trainer.fit(model, data)
    assert trainer.history[-1].loss < 0.2
    batch = data.build(*zip(*PAIRS))
    model.train()
    predictions, weights = model.predict_step(batch, d2l.try_gpu(), data.num_steps)
    assert weights == []
    assert model.training
    for (_, french), row in zip(PAIRS, predictions):
        words = data.tgt_vocab.to_tokens(row)
        assert d2l.bleu(" ".join(words[: words.index("<eos>")]), french, k=2) == 1


def test_masked_loss_is_the_mean_over_words():
    model = d2l.Seq2Seq(nn.Identity(), nn.Identity(), 0, 0.1)
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, 2, 0], [3, 0, 0]])
    expected = nn.functional.cross_entropy(logits.reshape(6, 5), labels.reshape(6), ignore_index=0)
    torch.testing.assert_close(model.loss(logits, labels), expected)


def test_translation_as_earlier_editions(pairs, capsys):
    torch.manual_seed(0)
    data_iter, src_vocab, tgt_vocab = d2l.load_data_nmt(8, 7, 32)
    X, X_len, Y, _ = next(iter(data_iter))
    assert X.shape == Y.shape == (8, 7)
    assert torch.equal(X_len, (src_vocab["<pad>"] != X).sum(1))
    encoder = d2l.Seq2SeqEncoder(len(src_vocab), 16, 24, 1)
    decoder = d2l.Seq2SeqDecoder(len(tgt_vocab), 16, 24, 1)
    from d2lfast import models

    net = models.EncoderDecoder(encoder, decoder)
    d2l.train_seq2seq(net, data_iter, 0.02, 30, tgt_vocab, d2l.cpu())
    assert "tokens/sec on cpu" in capsys.readouterr().out
    for english, french in PAIRS:
        text, weights = d2l.predict_seq2seq(net, english, src_vocab, tgt_vocab, 7, d2l.cpu())
        assert text == french
        assert weights == []


def test_masks():
    X = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert d2l.sequence_mask(X, torch.tensor([1, 2])).tolist() == [[1, 0, 0], [4, 5, 0]]
    assert d2l.sequence_mask(torch.ones(2, 3, 4), torch.tensor([1, 2]), value=-1)[0, 1].tolist() == [-1] * 4
    loss = d2l.MaskedSoftmaxCELoss()
    out = loss(torch.ones(3, 4, 10), torch.ones(3, 4, dtype=torch.long), torch.tensor([4, 2, 0]))
    torch.testing.assert_close(out, torch.tensor([2.3026, 1.1513, 0.0]), atol=1e-4, rtol=0)


def test_train_ch6(capsys):
    data = images()
    net = d2l.LeNet().net
    animator = d2l.train_ch6(
        net, data.get_dataloader(True), data.get_dataloader(False), 2, 0.5, d2l.try_gpu()
    )
    out = capsys.readouterr().out
    assert "training on cpu" in out or "cuda" in out
    assert "examples/sec on" in out
    assert [len(x) for x in animator.X] == [8, 8, 2]
    assert animator.figure.axes[0].get_xlabel() == "epoch"
    assert 0 <= d2l.evaluate_accuracy_gpu(net, data.get_dataloader(False)) <= 1


def test_several_devices(capsys):
    data = [torch.ones(1, 2) * (i + 1) for i in range(2)]
    d2l.allreduce(data)
    assert [each.tolist() for each in data] == [[[3, 3]], [[3, 3]]]
    X, y = stripes(20)
    parts, _ = d2l.split_batch(torch.arange(20).reshape(4, 5), torch.arange(4), [d2l.cpu()] * 2)
    assert [part.shape for part in parts] == [(2, 5), (2, 5)]
    from d2lfast.book.multi_gpu import initial_params

    start = initial_params(0.1)
    assert sum(p.numel() for p in start) == 129_068
    results = []
    for count in (1, 3):
        params = [d2l.get_params(start, d2l.cpu()) for _ in range(count)]
        for _ in range(2):
            d2l.train_batch(X, y, params, [d2l.cpu()] * count, 0.1)
        assert all(torch.equal(a, b) for copy in params for a, b in zip(copy, params[0]))
        results.append(params[0])
    for one, three in zip(*results):
        torch.testing.assert_close(one, three, rtol=1e-4, atol=1e-6)
    small = images()
    accuracies = d2l.train(
        2, 16, 0.2, num_epochs=1, data=(small.get_dataloader(True), small.get_dataloader(False))
    )
    assert 0 <= accuracies[0] <= 1
    assert "sec/epoch" in capsys.readouterr().out


def test_k_fold(tmp_path, monkeypatch, capsys):
    rows = ["Id,Area,SalePrice", *(f"{i},{i * 10},{100_000 + 5_000 * i}" for i in range(40))]
    (tmp_path / "kaggle_house_pred_train.csv").write_text("\n".join(rows))
    monkeypatch.setenv("D2LFAST_DATA", str(tmp_path))
    models = d2l.k_fold(d2l.Trainer(max_epochs=10), d2l.KaggleHouse(batch_size=8), k=5, lr=0.05)
    assert len(models) == 5
    assert "average validation log mse" in capsys.readouterr().out


def test_logistic_regression():
    X = torch.randn(200, 3)
    y = (X @ torch.tensor([1.0, -2.0, 0.5]) > 0).float().reshape(-1, 1)

    class Points(d2l.DataModule):
        def __init__(self):
            super().__init__()
            self.batch_size = 20

        def get_dataloader(self, train):
            return self.get_tensorloader((X, y), train)

    trainer = d2l.Trainer(max_epochs=20)
    trainer.fit(d2l.LogisticRegression(0.5), Points())
    assert trainer.history[-1].validation_accuracy > 0.9
