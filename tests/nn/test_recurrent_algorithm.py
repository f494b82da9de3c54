"""Which algorithm recurrent layers take, and what `explain` says of it."""

import pytest
import torch

import d2lfast
from d2lfast import recurrent_algorithm
from d2lfast.nn import recurrent_layers

pytestmark = pytest.mark.cpu


@pytest.fixture
def products(monkeypatch):
    """A processor with products of bfloat16, or one without."""

    def set_to(value):
        monkeypatch.setattr(recurrent_algorithm, "_bfloat16_products", lambda: value)

    set_to(True)
    return set_to


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("shape", "hidden", "name"),
    [((32, 32, 28), 32, "fused"), ((35, 32, 256), 256, "rows"), ((35, 20, 650), 650, "units"),
     ((35, 128, 650), 650, "rows"), ((35, 8, 256), 256, "units")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_schedules(kind, shape, hidden, name, two_threads):
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    if (kind, hidden, shape[1]) == ("rnn", 650, 20):
        hidden = 1300
    both = {"forward": name, "backward": name}
    assert d2lfast.explain(f"{kind}_layer", shape, (gates * hidden, hidden)) == both
    layer = getattr(d2lfast.nn, kind.upper())(shape[2], hidden, device="meta").to_empty(device="cpu")
    assert d2lfast.explain(layer, shape) == both
    layer.batch_first = True
    assert d2lfast.explain(layer, (shape[1], shape[0], shape[2])) == both


def test_explain_needs_shapes():
    for arguments in ((d2lfast.nn.GRU(2, 3),), ("gru_layer", (1, 2, 3))):
        with pytest.raises(ValueError, match="explain needs the shape"):
            d2lfast.explain(*arguments)


def test_other_inputs():
    layer = d2lfast.nn.LSTM(28, 32, proj_size=5, bidirectional=True)
    fused = {"forward": "fused", "backward": "fused"}
    for shape in ((35, 3, 28), (35, 28), (35, 1024)):
        assert d2lfast.explain(layer, shape) == fused
    assert d2lfast.explain(d2lfast.nn.GRUCell(2, 3), (1, 2)) == {"forward": "direct", "backward": "direct"}
    names = d2lfast.explain("gru_layer", (3, 4, 5), (18, 6), device="cuda")
    assert set(names.values()) <= {"persistent_cluster", "aten"}


def test_large_bfloat16_layers_are_left_to_torch(products, monkeypatch):
    shape, weight = (4, 64, 256), (1024, 256)
    explained = lambda **options: set(d2lfast.explain("lstm_layer", shape, weight, **options).values())  # noqa: E731
    assert explained(dtype=torch.bfloat16) == {"aten"}
    assert explained(dtype=torch.float32) == {"rows"}
    called = []
    original = torch.nn.LSTM.forward
    monkeypatch.setattr(
        torch.nn.LSTM, "forward", lambda self, *args: called.append(self) or original(self, *args)
    )
    layer, x = d2lfast.nn.LSTM(256, 256), torch.randn(shape)

    def native(*arguments):
        called.clear()
        layer(*arguments)
        return bool(called)

    assert not native(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert native(x)
    layer.bfloat16()
    x = x.bfloat16()
    assert native(x)
    assert not native(x[:, :2])
    assert not native(torch.nn.utils.rnn.pack_padded_sequence(x, [4] * 64))
    assert not native(torch.zeros(4, 64, dtype=torch.int64))
    products(False)
    assert not native(x)
    assert explained(dtype=torch.bfloat16) == {"rows"}


def test_a_batch_of_the_book_in_bfloat16(products):
    """Forward alone is faster here; with backward torch's is."""
    names = d2lfast.explain("lstm_layer", (35, 1024, 28), (128, 32), dtype=torch.bfloat16)
    assert names == {"forward": "fused", "backward": "aten"}
    layer, x = d2lfast.nn.LSTM(28, 32, dtype=torch.bfloat16), torch.zeros(2, 1024, 28, dtype=torch.bfloat16)
    assert recurrent_layers._left_to_torch(layer, "lstm", x)
    with torch.no_grad():
        assert not recurrent_layers._left_to_torch(layer, "lstm", x)
