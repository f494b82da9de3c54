import pytest
import torch
from ops.op_tester import OpTester, naming

from d2lfast.testing import Case, check, inputs_of, run


def cell(operator):
    gates = {"rnn_cell": 1, "gru_cell": 3, "lstm_cell": 4}[operator]

    def case(batch, inputs, hidden, bias=True, **options):
        state = {"hx": (batch, hidden)} | ({"cx": (batch, hidden)} if gates == 4 else {})
        shapes = {"input": (batch, inputs), **state}
        shapes |= {"w_ih": (gates * hidden, inputs), "w_hh": (gates * hidden, hidden)}
        if bias:
            shapes |= {"b_ih": (gates * hidden,), "b_hh": (gates * hidden,)}
        if gates == 1:
            options.setdefault("nonlinearity", "tanh")
        return Case(operator, shapes, options)

    return case, naming(case)


def sizes(named):
    return (
        named("book", 32, 28, 32),
        named("one_sequence", 1, 10, 20),
        named("one_unit", 3, 4, 1),
        named("one_input", 3, 1, 16),
        named("prime", 7, 13, 17),
        named("wide", 5, 33, 70),
        named("large", 8, 96, 128),
        named("no_bias", 4, 11, 9, bias=False),
        named("empty_batch", 0, 5, 6),
    )


def small(named):
    return (named("plain", 3, 4, 3), named("no_bias", 2, 3, 2, bias=False), named("prime", 2, 5, 7))


def refusals(case):
    base = case(3, 4, 5)
    changes = {
        "input_features": {"input": (3, 6)},
        "hidden_features": {"hx": (3, 7)},
        "batches_differ": {"hx": (2, 5)},
        "w_hh_features": {"w_hh": (base.shapes["w_hh"][0], 6)},
        "gates_differ": {"w_ih": (base.shapes["w_ih"][0] + 1, 4)},
        "input_rank_1": {"input": (4,)},
    }
    return tuple(
        pytest.param(base.replace(shapes={**base.shapes, **change}), id=id) for id, change in changes.items()
    )


def threaded(case):
    return (case(64, 128, 96), case(33, 65, 67), case(1, 256, 256))


class CellTester(OpTester):
    nonfinite = ("input", "hx")

    def test_refused_dtypes(self):
        """Floating point only. (torch's tanh cell alone also takes integers, which no module can hold.)"""
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.complex64):
            inputs = {n: x if x is None else x.to(dtype) for n, x in inputs_of(self.exported).items()}
            with pytest.raises(RuntimeError):
                self.entry.ours(inputs, dict(self.exported.options))

    @pytest.mark.isa
    def test_saturation(self):
        """Pre-activations of hundreds: the gates end at 0, 1 and -1, not at NaN."""
        base = self.exported
        results = []
        for function, exact in (
            (self.entry.ours, False),
            (self.entry.native, False),
            (self.entry.native, True),
        ):
            t = inputs_of(base)
            t["input"] = t["input"] * 300
            results.append(run(base, function, t, exact))
        for ours, theirs in zip(results[0].outputs, results[1].outputs, strict=True):
            assert torch.isfinite(ours).all()
            torch.testing.assert_close(ours, theirs)
        for name, gradient in results[0].gradients.items():
            torch.testing.assert_close(gradient, results[1].gradients[name], rtol=1e-4, atol=1e-3)


class TestRNNCell(CellTester):
    operator = "rnn_cell"
    case, named = cell("rnn_cell")
    cases = (*sizes(named), named("relu", 5, 13, 17, nonlinearity="relu"))
    small_cases = (*small(named), named("relu", 3, 4, 3, nonlinearity="relu"))
    nonfinite_cases = (named("tanh", 3, 4, 5), named("relu", 3, 4, 5, nonlinearity="relu"))
    refused = refusals(case)
    threaded = threaded(case)
    exported = case(3, 6, 5)
    dynamic = ("input", "hx")


class TestGRUCell(CellTester):
    operator = "gru_cell"
    case, named = cell("gru_cell")
    cases = sizes(named)
    small_cases = small(named)
    nonfinite_cases = (named("plain", 3, 4, 5),)
    refused = refusals(case)
    threaded = threaded(case)
    exported = case(3, 6, 5)
    dynamic = ("input", "hx")


class TestLSTMCell(CellTester):
    operator = "lstm_cell"
    promoted = ("cx",)
    case, named = cell("lstm_cell")
    cases = sizes(named)
    small_cases = small(named)
    nonfinite = ("input", "hx", "cx")
    nonfinite_cases = (named("plain", 3, 4, 5),)
    refused = refusals(case)
    threaded = threaded(case)
    exported = case(3, 6, 5)
    dynamic = ("input", "hx", "cx")

    @pytest.mark.parametrize("used", [(0,), (1,)])
    def test_one_output_unused(self, used):
        """The other output's gradient is undefined in backward."""
        for case in self.small_cases:
            check(case.values[0].replace(used=used))
