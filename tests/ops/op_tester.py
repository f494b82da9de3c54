"""The checks that every operator passes. A subclass names the operator and its cases."""

import itertools
import os
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from d2lfast.testing import DTYPES, LAYOUTS, OPERATORS, Case, check, compare, inputs_of, run
from d2lfast.testing.cases import DEVICE
from d2lfast.testing.compare import same


class RecordOperators(TorchDispatchMode):
    """Keeps the calls of operators, those that backward makes included.

    namespace: of the operators, or None for all.
    """

    def __init__(self, namespace="d2lfast"):
        super().__init__()
        self.namespace = namespace
        self.calls = []

    def names(self):
        return [func.name() for func, _, _ in self.calls]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.namespace in (None, func.namespace):
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def naming(case):
    """The function that builds a case from a test's name and the arguments of `case`."""

    def named(id, *arguments, **options):
        return pytest.param(case(*arguments, **options), id=id)

    return named


def detached(args):
    return tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, tuple(args))


def bitwise_equal(a, b):
    for x, y in zip(a.outputs, b.outputs, strict=True):
        assert x.dtype == y.dtype
        assert same(x, y)
    assert a.gradients.keys() == b.gradients.keys()
    for name, gradient in a.gradients.items():
        assert same(gradient, b.gradients[name]), name


class OpTester:
    """Hooks of a subclass.

    operator: key of d2lfast.testing.OPERATORS, which knows d2lfast's call, torch's, and the tensors.
    cases: forward and gradients in every dtype.
    small_cases: float64 numerical derivatives, the contracts of the dispatcher, layouts of each argument.
    nonfinite_cases: NaN and infinities are put into the arguments named by `nonfinite`.
    refused: cases that torch refuses.
    threaded: a case large enough for two threads in forward and backward.
    strides: whether outputs have torch's strides for every layout of every argument.
    promoted: arguments whose other dtypes torch promotes and d2lfast refuses.
    exported: a case whose tensors named by `dynamic` have the batch as their first axis.
    """

    operator: str
    cases: tuple[Any, ...]
    small_cases: tuple[Any, ...]
    refused: tuple[Any, ...]
    nonfinite_cases: tuple[Any, ...]
    nonfinite: tuple[str, ...] = ("input",)
    threaded: tuple[Case, ...]
    exported: Case
    dynamic: tuple[str, ...] = ("input",)
    dtypes = tuple(pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in DTYPES)
    layouts = LAYOUTS
    strides = True
    promoted: tuple[str, ...] = ()

    @property
    def entry(self):
        return OPERATORS[self.operator]

    def ours(self, case, inputs=None):
        return run(case, self.entry.ours, inputs or inputs_of(case))

    def arguments(self, case, inputs=None, requires_grad=True):
        inputs = dict(inputs or inputs_of(case))
        for name in case.gradients() if requires_grad else ():
            inputs[name] = inputs[name].detach().requires_grad_()
        return self.entry.arguments(inputs, dict(case.options))

    def recorded(self, case):
        """The calls of d2lfast's operators in forward and backward."""
        with RecordOperators() as recorder:
            self.ours(case)
        return recorder.calls

    # Arithmetic.

    @pytest.mark.isa
    def test_forward_and_gradients(self, case, any_dtype):
        check(case.replace(dtype=any_dtype))

    @pytest.mark.sanitizer
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_small_cases(self, small_case, dtype):
        check(small_case.replace(dtype=dtype))

    @pytest.mark.isa
    def test_layouts(self, small_case, any_layout):
        """Each argument alone in the layout, then all of them."""
        names = (*self.entry.tensors, "grad_output")
        usable = [n for n in names if n not in self.entry.mutated or any_layout in ("sliced", "strided")]
        for chosen in (*((name,) for name in usable), tuple(usable)):
            layouts = dict.fromkeys(chosen, any_layout)
            try:
                check(small_case.replace(layouts=layouts), strides=self.strides)
            except AssertionError as error:
                raise AssertionError(f"{any_layout} {', '.join(chosen)}: {error}") from error

    def test_each_set_of_gradients(self, small_case):
        """Exactly the gradients that are asked for, and the same as when all are."""
        everything = self.ours(small_case)
        names = small_case.gradients()
        sizes = range(len(names) + 1) if len(names) <= 4 else (0, 1, len(names) - 1)
        for size in sizes:
            for wanted in itertools.combinations(names, size):
                result = self.ours(small_case.replace(differentiable=wanted))
                assert set(result.gradients) == set(wanted)
                for name in wanted:
                    a, b = result.gradients[name], everything.gradients[name]
                    assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), (wanted, name)

    @pytest.mark.isa
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_nonfinite_values(self, nonfinite_case, value):
        """NaN and infinities come out where torch's come out, in outputs and gradients."""
        for name in self.nonfinite:
            results = []
            for function, exact in (
                (self.entry.ours, False),
                (self.entry.native, False),
                (self.entry.native, True),
            ):
                inputs = inputs_of(nonfinite_case)
                flat = inputs[name].view(-1)
                flat[:: max(2, flat.numel() // 3)] = value
                results.append(run(nonfinite_case, function, inputs, exact))
            if value != value:
                assert any(torch.isnan(x).any() for x in results[1].outputs), "torch's output has no NaN"
            compare(nonfinite_case, *results)

    # Derivatives.

    def _function(self, case):
        inputs = inputs_of(case)
        names = case.gradients()
        leaves = tuple(inputs[name].detach().requires_grad_() for name in names)

        def function(*values):
            tensors = {**inputs_of(case), **dict(zip(names, values))}
            outputs = self.entry.ours(tensors, dict(case.options))
            return tuple(x for x in outputs if x.is_floating_point() and x.requires_grad)

        return function, leaves

    def test_gradcheck(self, small_case):
        function, leaves = self._function(small_case.replace(dtype=torch.float64))
        # Whole Jacobians take the emulated GPU minutes.
        emulated = "D2LFAST_EMULATED_CUDA" in os.environ
        torch.autograd.gradcheck(function, leaves, fast_mode=emulated, atol=1e-6)

    def test_gradgradcheck(self, small_case):
        function, leaves = self._function(small_case.replace(dtype=torch.float64))
        torch.autograd.gradgradcheck(function, leaves, fast_mode=True, atol=1e-5)

    def test_gradient_with_graph_is_the_gradient(self, small_case):
        """create_graph=True takes another path to the same gradient."""
        function, leaves = self._function(small_case)
        outputs = function(*leaves)
        grads = [torch.randn_like(x) for x in outputs]
        plain = torch.autograd.grad(outputs, leaves, grads, retain_graph=True)
        graph = torch.autograd.grad(outputs, leaves, grads, create_graph=True)
        for a, b in zip(plain, graph):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)

    def test_backward_operators_refuse_differentiation(self, small_case):
        """A backward operator without a derivative of its own must not give zeros (peers.md, 4.2)."""
        called = [call for call in self.recorded(small_case) if call[0].__name__.startswith("_")]
        called = [call for call in called if "backward" in call[0].__name__]
        assert called, "no backward operator ran"
        for func, args, kwargs in called:
            args = [
                x.detach().clone().requires_grad_()
                if isinstance(x, torch.Tensor) and x.is_floating_point()
                else x
                for x in args
            ]
            results = func(*args, **kwargs)
            results = [results] if isinstance(results, torch.Tensor) else results
            result = next(x for x in results if x.requires_grad and x.numel() > 0)
            with pytest.raises(RuntimeError, match="not implemented"):
                result.sum().backward()

    # Contracts of the dispatcher.

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "transposed"])
    def test_opcheck(self, small_case, layout):
        case = small_case.replace(
            layouts={n: layout for n in self.entry.tensors if n not in self.entry.mutated}
        )
        torch.library.opcheck(self.entry.overload(), self.arguments(case))

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "broadcast"])
    def test_opcheck_of_backward_operators(self, small_case, layout):
        names = {
            n: layout for n in self.entry.tensors if n not in self.entry.mutated and layout != "broadcast"
        }
        calls = self.recorded(small_case.replace(layouts={**names, "grad_output": layout}))
        seen = set()
        for func, args, kwargs in calls:
            if func is self.entry.overload() or func in seen:
                continue
            seen.add(func)
            torch.library.opcheck(func, detached(args), kwargs)
        assert seen, "no internal operator ran"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_fake_results(self, small_case, dtype):
        """What compilation believes of each operator's results, the internal ones included, is so."""
        for func, args, kwargs in self.recorded(small_case.replace(dtype=dtype)):
            torch.library.opcheck(func, detached(args), kwargs, test_utils="test_faketensor")

    def test_autocast(self, small_case):
        """Under bfloat16 autocast: torch's dtypes, and gradients in the dtype of the leaves."""
        for dtype in (torch.float32, torch.bfloat16):
            case = small_case.replace(dtype=dtype)
            with torch.autocast(DEVICE, torch.bfloat16):
                ours, theirs = (run(case, f, inputs_of(case)) for f in (self.entry.ours, self.entry.native))
            exact = run(case, self.entry.native, inputs_of(case), exact=True)
            for mine, native, best in zip(ours.outputs, theirs.outputs, exact.outputs, strict=True):
                assert mine.dtype == native.dtype
                scale = best.abs().max().clamp(min=1).item()
                torch.testing.assert_close(mine.double(), best.double(), rtol=0, atol=0.05 * scale)
            assert ours.gradients.keys() == theirs.gradients.keys()
            for name, gradient in ours.gradients.items():
                assert gradient.dtype == dtype
                best = exact.gradients[name]
                native_error = (theirs.gradients[name].double() - best).abs().max().item()
                allowed = 2 * native_error + 0.02 * best.abs().max().item()
                assert (gradient.double() - best).abs().max().item() <= allowed, name

    # Compilers.

    def _compiled(self, case, **options):
        # The plain operator, as dynamo would specialise on the numbers in the closures of `ours`.
        def function(*tensors):
            arguments = self.entry.arguments(dict(zip(self.entry.tensors, tensors)), dict(case.options))
            result = self.entry.overload()(*arguments)
            return result if isinstance(result, tuple) else (result,)

        compiled = torch.compile(function, fullgraph=True, **options)

        def implementation(f):
            def call(tensors, _):
                outputs = f(*(tensors[name] for name in self.entry.tensors))
                written = (tensors[name] for name in self.entry.mutated)
                return (*outputs, *(x for x in written if x is not None))

            return call

        eager, traced = implementation(function), implementation(compiled)
        return (run(case, f, inputs_of(case)) for f in (eager, traced))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile_aot_eager(self, small_case, dynamic):
        eager, compiled = self._compiled(small_case, backend="aot_eager", dynamic=dynamic)
        bitwise_equal(eager, compiled)

    def test_compile_channels_last(self):
        case = self.exported.replace(layouts={"input": "channels_last"})
        eager, compiled = self._compiled(case, backend="aot_eager")
        bitwise_equal(eager, compiled)
        assert eager.outputs[0].stride() == compiled.outputs[0].stride()

    def test_compile_inductor(self):
        eager, compiled = self._compiled(self.exported)
        bitwise_equal(eager, compiled)

    def test_export_with_dynamic_batch(self):
        case, entry = self.exported, self.entry
        names = [name for name in entry.tensors if case.shapes.get(name) is not None]

        class Model(torch.nn.Module):
            def forward(self, *tensors):
                given = {**dict.fromkeys(entry.tensors), **dict(zip(names, tensors))}
                return entry.overload()(*entry.arguments(given, dict(case.options)))

        def tensors(case):
            return tuple(x for x in inputs_of(case).values() if x is not None)

        batch = torch.export.Dim("batch", min=2, max=64)
        dynamic = tuple({0: batch} if name in self.dynamic else None for name in names)
        program = torch.export.export(Model(), tensors(case), dynamic_shapes=(dynamic,))
        shapes = {
            name: (7, *shape[1:]) if name in self.dynamic and shape is not None else shape
            for name, shape in case.shapes.items()
        }
        other = case.replace(shapes=shapes)
        with torch.no_grad():
            ours, theirs = Model()(*tensors(other)), program.module()(*tensors(other))
        if isinstance(ours, torch.Tensor):
            ours, theirs = (ours,), (theirs,)
        for a, b in zip(ours, theirs, strict=True):
            assert same(a, b)

    # State of torch.

    @pytest.mark.cpu
    def test_threads_do_not_change_a_bit(self):
        for case in self.threaded:
            results = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                results.append(self.ours(case))
            bitwise_equal(*results)

    def test_nothing_is_left_unwritten(self, small_case):
        """torch fills what an operator allocates with NaN (or the largest integer) in this mode."""
        for layout, grad_layout in itertools.product(("contiguous", "channels_last", "strided"), repeat=2):
            layouts = {n: layout for n in self.entry.tensors if n not in self.entry.mutated}
            case = small_case.replace(layouts={**layouts, "grad_output": grad_layout})
            plain = self.ours(case)
            torch.use_deterministic_algorithms(True)
            assert torch.utils.deterministic.fill_uninitialized_memory
            filled = self.ours(case)
            torch.use_deterministic_algorithms(False)
            assert all(torch.isfinite(x).all() for x in plain.outputs), "the case must be finite to tell"
            bitwise_equal(plain, filled)

    def test_inference_mode_and_no_grad(self, small_case):
        expected = self.ours(small_case)
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                outputs = self.entry.ours(inputs_of(small_case), dict(small_case.options))
                result = self.entry.overload()(*self.arguments(small_case, requires_grad=False))
            assert all(same(a, b) for a, b in zip(outputs, expected.outputs, strict=True))
            first = result[0] if isinstance(result, tuple) else result
            assert same(first, expected.outputs[0])
            assert not first.requires_grad

    # Refusals.

    def test_refused_as_by_torch(self, refused):
        """The same exception type; a case that torch accepts has no place in the list."""
        with pytest.raises(Exception):  # noqa: B017
            self.entry.native(inputs_of(refused), dict(refused.options))
        check(refused)

    def test_refused_dtypes(self):
        """Integer, complex and sparse tensors are torch's business: the same result or the same error."""
        for dtype in (torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64):
            results = []
            for function in (self.entry.ours, self.entry.native):
                inputs = inputs_of(self.exported)
                cast = {n: x if x is None else x.to(dtype) for n, x in inputs.items()}
                try:
                    results.append(function(cast, dict(self.exported.options)))
                except Exception as error:
                    results.append(type(error))
            ours, theirs = results
            if isinstance(theirs, type):
                assert ours is theirs, dtype
            else:
                assert not isinstance(ours, type), (dtype, ours)
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a, b)

    def test_mixed_dtypes_and_devices(self):
        """One argument in another dtype, or on the meta device: torch's verdict."""
        given = [n for n, shape in self.exported.shapes.items() if shape is not None]
        names = [n for n in given if n not in self.promoted]
        if len(names) == 1:
            return
        for name in names:
            check(self.exported.replace(dtypes={name: torch.float64}))
            inputs = inputs_of(self.exported)
            inputs[name] = inputs[name].to("meta")
            try:
                self.entry.native(dict(inputs), dict(self.exported.options))
            except Exception as error:
                # Some of torch's CUDA functions have no kernel for meta tensors.
                kind = RuntimeError if isinstance(error, NotImplementedError) else type(error)
                with pytest.raises(kind):
                    self.entry.ours(inputs, dict(self.exported.options))
