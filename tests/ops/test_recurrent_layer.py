import pytest
import torch
from ops.op_tester import OpTester, naming
from torch.nn import functional

from d2lfast.testing import Case, check, inputs_of
from d2lfast.testing.cases import DEVICE
from d2lfast.testing.recurrent_layers import layer_shapes

MODES = {"rnn_layer": "tanh", "gru_layer": "gru", "lstm_layer": "lstm"}


def layer(operator):
    def case(*sizes, bias=True, projection=0, values="normal", **options):
        return Case(operator, layer_shapes(operator, *sizes, bias, projection), options, values=values)

    return case, naming(case)


def sizes(named):
    """Small and large layers (fused or as products of sequences), with few and many rows."""
    return (
        named("book", 4, 32, 28, 32),
        named("book_batch", 3, 130, 28, 32),
        named("one", 1, 1, 1, 1),
        named("prime", 5, 7, 13, 17),
        named("large", 3, 5, 130, 150, values="trained"),
        named("large_batch", 2, 131, 100, 140, values="trained"),
        named("no_bias", 3, 4, 11, 9, bias=False),
        named("reverse", 3, 33, 5, 20, reverse=True),
        named("large_reverse", 3, 5, 130, 150, values="trained", reverse=True),
        named("empty_batch", 2, 0, 5, 6),
    )


def small(named):
    return (
        named("plain", 3, 2, 3, 2),
        named("no_bias", 2, 2, 2, 3, bias=False),
        named("reverse", 3, 2, 2, 2, reverse=True),
    )


def refusals(case):
    base = case(3, 4, 5, 6)
    changes = {
        "input_features": {"input": (3, 4, 7)},
        "no_steps": {"input": (0, 4, 5)},
        "hidden_features": {"hx": (4, 7)},
        "batches_differ": {"hx": (5, 6)},
        "w_hh_features": {"w_hh": (base.shapes["w_hh"][0], 7)},
        "gates_differ": {"w_ih": (base.shapes["w_ih"][0] + 1, 5)},
        "bias_length": {"b_ih": (base.shapes["w_ih"][0] + 1,)},
    }
    return tuple(
        pytest.param(base.replace(shapes={**base.shapes, **change}), id=id) for id, change in changes.items()
    )


def trained(case):
    """The tensors of a case with weights as of a trained layer."""
    return inputs_of(case.replace(values="trained"))


class LayerTester(OpTester):
    nonfinite = ("input", "hx")
    # A loop over cells stacks its outputs; states of torch's cells have the strides of the first.
    strides = False

    def test_refused_dtypes(self):
        for dtype in (torch.uint8, torch.bool, torch.complex64):
            inputs = self.entry.arguments(inputs_of(self.exported), {})
            with pytest.raises(RuntimeError):
                self.entry.overload()(inputs[0].to(dtype), *inputs[1:])

    @pytest.mark.isa
    @pytest.mark.parametrize("hidden", [9, 150])
    def test_one_hot_rows_and_tokens(self, hidden):
        """Rows with a single 1 and integer tokens give what the product gives."""
        case = type(self).case(4, 33, 40, hidden)
        t = trained(case)
        tokens = torch.randint(0, 40, (4, 33))
        leaves = [t[n].requires_grad_() for n in ("w_ih", "w_hh", "hx", "b_ih", "b_hh")]
        rows = functional.one_hot(tokens, 40).float()
        results = []
        for input in (rows, tokens):
            outputs = self.entry.ours({**t, "input": input}, {})
            exact = {n: None if x is None else x.detach().double().requires_grad_() for n, x in t.items()}
            wanted = self.entry.native({**exact, "input": rows.double()}, {})
            grad = torch.randn(outputs[0].shape, generator=torch.Generator(DEVICE).manual_seed(1))
            for a, b in zip(outputs, wanted, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=0, atol=2e-5)
            found = torch.autograd.grad(outputs[0], leaves, grad)
            expected = torch.autograd.grad(
                wanted[0], [exact[n] for n in ("w_ih", "w_hh", "hx", "b_ih", "b_hh")], grad.double()
            )
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)
            results.append((*outputs, *found))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)
        # One row that is not one-hot sends its step to the product.
        broken = rows.clone()
        broken[2, 5] = 0
        wanted = self.entry.native({**t, "input": broken}, {})
        for a, b in zip(self.entry.ours({**t, "input": broken}, {}), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-5)

    @pytest.mark.parametrize("hidden", [9, 150])
    def test_one_hot_rows_with_infinite_weights(self, hidden):
        """Zero times infinity is NaN: the product is made, not the gather."""
        t = inputs_of(type(self).case(2, 3, 40, hidden))
        t["w_ih"][0, 0] = float("inf")
        t["input"] = functional.one_hot(torch.full((2, 3), 7), 40).float()
        ours, theirs = (f(t, {})[0] for f in (self.entry.ours, self.entry.native))
        assert theirs.isnan().any()
        assert torch.equal(ours.isnan(), theirs.isnan())

    def compare_norms(self, sizes, tolerance):
        """With weights as of a trained layer, whose errors do not grow."""
        t = trained(type(self).case(*sizes))
        exact = {n: None if x is None else x.double().requires_grad_() for n, x in t.items()}
        names = [n for n, x in t.items() if x is not None]
        for n in names:
            t[n].requires_grad_()
        outputs, wanted = self.entry.ours(t, {}), self.entry.native(exact, {})
        grad = torch.randn(outputs[0].shape, generator=torch.Generator(DEVICE).manual_seed(1))
        found = torch.autograd.grad(outputs[0], [t[n] for n in names], grad)
        expected = torch.autograd.grad(wanted[0], [exact[n] for n in names], grad.double())
        for a, b in zip((*outputs, *found), (*wanted, *expected), strict=True):
            assert (a.double() - b).norm() < tolerance * b.norm()

    @pytest.mark.parametrize("hidden", [150, 600])
    def test_threads_split_the_rows_or_the_units(self, hidden):
        """By the size of the recurrent weight."""
        self.compare_norms((4, 30, 40, hidden), 3e-6)

    @pytest.mark.cuda
    @pytest.mark.parametrize("hidden", [20, 60, 100, 200])
    def test_tf32(self, hidden):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            self.compare_norms((4, 30, 40, hidden), 2.0**-8)

    @pytest.mark.cpu  # on a GPU an assertion of the device, which ends its context, as in torch
    def test_tokens_out_of_range(self):
        t = inputs_of(type(self).case(2, 3, 4, 5))
        for value in (-1, 4):
            with pytest.raises(IndexError):
                self.entry.ours({**t, "input": torch.full((2, 3), value)}, {})

    def test_autocast(self, small_case):
        """torch's own layers decide the dtypes: tests/nn/test_recurrent_layers.py."""
        names = small_case.gradients()
        t = inputs_of(small_case)
        leaves = [t[name].requires_grad_() for name in names]
        exact = self.entry.native(
            {n: None if x is None else x.detach().double() for n, x in t.items()}, dict(small_case.options)
        )
        with torch.autocast(DEVICE, torch.bfloat16):
            outputs = self.entry.ours(t, dict(small_case.options))
        for a, b in zip(outputs, exact, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=0.1)
        for leaf, grad in zip(leaves, torch.autograd.grad(outputs[0].float().sum(), leaves), strict=True):
            assert grad.dtype == leaf.dtype

    @pytest.mark.parametrize("used", [(0,), (1,)])
    def test_one_output_unused(self, used):
        for case in self.small_cases:
            check(case.values[0].replace(used=used))

    def test_packed_rows(self):
        """Sequences of falling lengths, one after the other's steps: each as if it were alone."""
        for sizes in ((3, 5, 4, 6), (4, 40, 9, 20), (4, 6, 100, 150)):
            steps, batch = sizes[:2]
            t = trained(type(self).case(*sizes))
            lengths = sorted((1 + i % steps for i in range(batch)), reverse=True)
            packed = torch.nn.utils.rnn.pack_padded_sequence(t["input"], lengths)
            for reverse in (False, True):
                arguments = list(self.entry.arguments({**t, "input": packed.data}, {"reverse": reverse}))
                arguments[1] = packed.batch_sizes
                output, *states = self.entry.overload()(*arguments)
                padded = torch.nn.utils.rnn.pad_packed_sequence(packed._replace(data=output))[0]
                for row, length in enumerate(lengths):
                    alone = {**t, "input": t["input"][:length, row : row + 1]}
                    alone |= {n: t[n][row : row + 1] for n in ("hx", "cx") if n in t}
                    wanted = self.entry.native(alone, {"reverse": reverse})
                    torch.testing.assert_close(padded[:length, row], wanted[0][:, 0], rtol=0, atol=2e-5)
                    for state, expected in zip(states, wanted[1:], strict=True):
                        torch.testing.assert_close(state[row], expected[0], rtol=0, atol=2e-5)

    def test_batch_sizes_are_checked(self):
        t = inputs_of(type(self).case(2, 2, 3, 4))
        arguments = list(self.entry.arguments({**t, "input": t["input"].flatten(0, 1)}, {}))
        for sizes in ([1, 3], [2, 0, 2], [2, 1], [4], [], [[2, 2]]):
            arguments[1] = torch.tensor(sizes, dtype=torch.int64)
            with pytest.raises(RuntimeError):
                self.entry.overload()(*arguments)


class TestRNNLayer(LayerTester):
    operator = "rnn_layer"
    case, named = layer("rnn_layer")
    cases = (
        *sizes(named),
        named("relu", 3, 5, 13, 17, nonlinearity="relu"),
        named("four_vectors", 2, 9, 30, 60),
    )
    small_cases = (*small(named), named("relu", 3, 2, 4, 3, nonlinearity="relu"))
    nonfinite_cases = (named("tanh", 3, 3, 4, 5), named("relu", 3, 3, 4, 5, nonlinearity="relu"))
    refused = refusals(case)
    threaded = (
        case(5, 200, 28, 32),
        case(3, 33, 165, 267),
        case(3, 150, 165, 267),
        case(2, 33, 9, 600),
        case(1, 1, 256, 256),
    )
    exported = case(3, 4, 6, 5)


class TestGRULayer(LayerTester):
    operator = "gru_layer"
    case, named = layer("gru_layer")
    cases = sizes(named)
    small_cases = small(named)
    nonfinite_cases = (named("plain", 3, 3, 4, 5),)
    refused = refusals(case)
    threaded = (
        case(5, 200, 28, 32),
        case(3, 33, 165, 167),
        case(3, 150, 165, 167),
        case(2, 33, 9, 600),
        case(1, 1, 256, 256),
    )
    exported = case(3, 4, 6, 5)


class TestLSTMLayer(LayerTester):
    operator = "lstm_layer"
    case, named = layer("lstm_layer")
    cases = (
        *sizes(named),
        named("projected", 3, 20, 9, 20, projection=7),
        named("empty_batch_projected", 3, 0, 9, 20, projection=7),
        named("large_projected", 3, 20, 100, 150, projection=70),
        named("large_batch_projected", 2, 131, 100, 150, projection=70),
    )
    small_cases = (*small(named), named("projected", 3, 2, 2, 3, projection=2))
    nonfinite = ("input", "hx", "cx")
    nonfinite_cases = (named("plain", 3, 3, 4, 5),)
    refused = refusals(case)
    threaded = (
        case(5, 200, 28, 32),
        case(3, 33, 165, 167),
        case(3, 33, 165, 167, projection=65),
        case(3, 150, 165, 167),
        case(2, 33, 9, 600),
        case(1, 1, 256, 256),
    )
    exported = case(3, 4, 6, 5)
