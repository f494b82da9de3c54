import os

# The cache of whole traces does not see a changed schema of a private operator, whose call it holds.
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")

import pytest
import torch

# Set by the workers of xdist: rich's console would keep the size, whatever a test asks for.
for size in ("COLUMNS", "LINES"):
    os.environ.pop(size, None)

EMULATED = "D2LFAST_EMULATED_CUDA" in os.environ
DEVICE = os.environ.get("D2LFAST_TEST_DEVICE", "cpu")
ON_GPU = EMULATED or DEVICE != "cpu"
context_lost = False

# The emulated GPU (tests/cuda/emulation): the CUDA operators and kernels take the place of the CPU's.
if EMULATED:
    import d2lfast  # noqa: F401

    torch.ops.load_library(os.environ["D2LFAST_EMULATED_CUDA"])

pytest.register_assert_rewrite("ops.op_tester", "ops.opinfo", "d2lfast.testing")


def pytest_collection_modifyitems(config, items):
    foreign = "cpu" if ON_GPU else "cuda"
    config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker(foreign)])
    items[:] = [item for item in items if not item.get_closest_marker(foreign)]


def pytest_generate_tests(metafunc):
    """A test of an OpTester runs over the attribute of its class that its argument is named after."""
    for argument, attribute in (
        ("case", "cases"),
        ("small_case", "small_cases"),
        ("refused", "refused"),
        ("nonfinite_case", "nonfinite_cases"),
        ("any_dtype", "dtypes"),
        ("any_layout", "layouts"),
    ):
        if argument in metafunc.fixturenames and hasattr(metafunc.cls, attribute):
            metafunc.parametrize(argument, getattr(metafunc.cls, attribute))


def check_context():
    """After a kernel's fault every call of CUDA fails: the tests after it would say nothing."""
    global context_lost
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            pytest.exit(f"the CUDA context is lost: {error}", returncode=3)
        context_lost = True
        raise


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    if context_lost and report.when == "teardown":
        os._exit(3)  # xdist goes on with a new worker


@pytest.fixture(autouse=True)
def torch_state():
    """Two threads, tensors on the device, and no switch of torch left over by the test before."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
        # cuBLAS may add parts of a product in 16 bits, which no tolerance expects.
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    # The references on a GPU are exact too.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    if torch.cuda.is_initialized():
        check_context()
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)
    torch._dynamo.reset()
