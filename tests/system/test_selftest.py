from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from d2lfast import selftest

ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def conv2d(x, w, b, stride, padding, dilation, groups, activation="none", algorithm="auto", residual=None):
    output = F.conv2d(x, w, b, stride, padding, dilation, groups)
    return ACTIVATIONS[activation](output if residual is None else output + residual)


def batch_norm_act(x, w, b, mean, var, training, momentum, eps, activation="none", residual=None):
    # In float32 to the end, as a fused operator: rounding before the activation would change its gradient.
    wide = x.float() if x.dtype.itemsize == 2 else x
    y = F.batch_norm(wide, mean, var, w, b, training, momentum, eps)
    return ACTIVATIONS[activation](y if residual is None else y + residual).to(x.dtype)


def in_place(function):
    return lambda x, *arguments: x.copy_(function(x.clone(), *arguments))


def rnn_cell(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity):
    return getattr(torch, f"rnn_{nonlinearity}_cell")(x, h, w_ih, w_hh, b_ih, b_hh)


def layer(native, states):
    def call(x, sizes, *tensors):
        initial = [state.unsqueeze(0) for state in tensors[:states]]
        state = initial if states == 2 else initial[0]
        output, *final = native(x, state, tensors[states:], True, 1, 0.0, False, False, False)
        return output, *(h.squeeze(0) for h in final)

    return call


NATIVE = {
    "conv2d": conv2d,
    "max_pool2d": F.max_pool2d,
    "max_pool2d_with_indices": lambda *arguments: F.max_pool2d(*arguments, return_indices=True),
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "adaptive_max_pool2d": lambda x, size: F.adaptive_max_pool2d(x, size, return_indices=True),
    "batch_norm_act": batch_norm_act,
    "batch_norm_act_": in_place(batch_norm_act),
    "rnn_cell": rnn_cell,
    "rnn_layer": layer(torch._VF.rnn_tanh, 1),
    "gru_layer": layer(torch._VF.gru, 1),
    "lstm_layer": layer(torch._VF.lstm, 2),
    "gru_cell": torch.gru_cell,
    "lstm_cell": lambda x, h, c, *weights: torch.lstm_cell(x, (h, c), *weights),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(monkeypatch, **changes):
    """The selftest with native functions, some of them changed, in the place of our operators."""
    operators = {**NATIVE, **changes}
    monkeypatch.setattr(selftest, "_ops", lambda: SimpleNamespace(**operators))
    monkeypatch.setattr(selftest, "registered_operators", lambda: set(operators))
    return selftest.run_selftest(["cpu"])


def test_every_public_operator_is_covered_and_passes():
    rows = selftest.run_selftest()
    assert [row for row in rows if row.status == "failed"] == []
    names = selftest.registered_operators()
    assert {row.operator for row in rows} == names == set(NATIVE)
    assert not any(name.startswith("_") for name in names)
    cpu = [row for row in rows if row.device == "cpu"]
    assert len(cpu) == 4 * len(names)
    assert all(row.status == "ok" and row.cases >= 2 for row in cpu)


def test_native_functions_pass(monkeypatch):
    assert {row.reason for row in run(monkeypatch)} == {""}


def quick(monkeypatch):
    monkeypatch.setattr(selftest, "TOLERANCES", {torch.float32: selftest.TOLERANCES[torch.float32]})


def test_an_operator_without_a_case_fails(monkeypatch):
    quick(monkeypatch)
    failed = [row for row in run(monkeypatch, brand_new=torch.sin) if row.status == "failed"]
    assert failed == [selftest.Row("brand_new", "", "", "failed", "selftest has no case for it")]


def test_a_missing_operator_fails(monkeypatch):
    monkeypatch.setattr(selftest, "registered_operators", lambda: set())
    rows = selftest.run_selftest(["cpu"])
    assert {row.operator for row in rows} == set(NATIVE)
    assert {(row.status, row.reason) for row in rows} == {("failed", "this build lacks it")}


class Slope(torch.autograd.Function):
    """The identity with a wrong gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.1


def shifted(output, amount):
    if isinstance(output, tuple):
        return (output[0] + amount, *output[1:])
    return output + amount


@pytest.mark.parametrize("name", NATIVE)
def test_wrong_results_and_wrong_gradients_fail(monkeypatch, name):
    overwrites = name.endswith("_")
    native = NATIVE[name.removesuffix("_")]

    def sloped(*arguments):
        return native(Slope.apply(arguments[0]), *arguments[1:])

    def raising(*arguments):
        raise RuntimeError("no such kernel\nand more")

    for wrong, reason in (
        (lambda *arguments: shifted(native(*arguments), 0.1), "differs from native PyTorch"),
        (lambda *arguments: shifted(native(*arguments), float("nan")), "differs from native PyTorch"),
        (sloped, "differs from native PyTorch"),
        (raising, "RuntimeError: no such kernel"),
    ):
        function = in_place(wrong) if overwrites else wrong
        with monkeypatch.context() as patch:
            quick(patch)
            patch.setattr(selftest, "cases", lambda: [case for case in ALL if case.operator == name])
            rows = [row for row in run(patch, **{name: function}) if row.operator == name]
        assert [(row.status, row.reason) for row in rows] == [("failed", reason)]


ALL = selftest.cases()


def test_wrong_indices_fail(monkeypatch):
    def wrong(*arguments):
        values, indices = F.max_pool2d(*arguments, return_indices=True)
        return values, indices + 1

    quick(monkeypatch)
    rows = run(monkeypatch, max_pool2d_with_indices=wrong)
    assert {row.operator for row in rows if row.status == "failed"} == {"max_pool2d_with_indices"}
