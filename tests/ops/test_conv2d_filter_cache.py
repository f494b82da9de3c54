"""Transformed filters kept between calls of inference: never stale, bounded, gone with their weight."""

import threading

import pytest
import torch

import d2lfast
from d2lfast.nn import functional as F

pytestmark = pytest.mark.cpu

# The first with transformed filters that fit into the caches, the second with ones that do not.
SIZES = ((2, 16, 8, 8, 32), (1, 200, 6, 6, 260))


@pytest.fixture(autouse=True, params=["winograd", "winograd_2x2"])
def algorithm(request):
    with d2lfast.backends.conv2d.flags(cache_filters=True), d2lfast.conv2d_algorithm(request.param):
        yield request.param


def problem(n, c, h, w, k, memory_format=torch.contiguous_format):
    torch.manual_seed(n)
    x = torch.randn(n, c, h, w).to(memory_format=memory_format)
    return x, torch.nn.Parameter(torch.randn(k, c, 3, 3).to(memory_format=memory_format))


def fresh(x, weight):
    """What a weight that nothing was kept for gives."""
    return F.conv2d(x, weight.detach().clone(memory_format=torch.preserve_format), padding=1)


def test_it_is_off_at_first():
    with d2lfast.backends.conv2d.flags(cache_filters=False):
        assert not d2lfast.backends.conv2d.cache_filters
    assert d2lfast.backends.conv2d.cache_filters


@pytest.mark.isa
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_results_are_the_same_bits(sizes, memory_format, mode):
    x, weight = problem(*sizes, memory_format=memory_format)
    expected = F.conv2d(x, weight, padding=1).detach()
    with mode():
        for _ in range(3):
            assert torch.equal(F.conv2d(x, weight, padding=1), expected)


def write(weight):
    with torch.no_grad():
        weight.mul_(2)


def step(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1).step()


def load(weight):
    layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, bias=False)
    layer.weight = weight
    layer.load_state_dict({"weight": torch.randn_like(weight)})


def view(weight):
    with torch.no_grad():
        weight[0].add_(1)


def infer(weight):
    with torch.inference_mode():
        weight.add_(1)


def replace(weight):
    weight.data = torch.randn_like(weight)


def restride(weight):
    weight.data = weight.data.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("change", [write, step, load, view, infer, replace, restride])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_change_is_seen(change, sizes):
    x, weight = problem(*sizes)
    for _ in range(3):
        with torch.no_grad():
            before = F.conv2d(x, weight, padding=1)
        change(weight)
        with torch.no_grad():
            after = F.conv2d(x, weight, padding=1)
            assert torch.equal(after, fresh(x, weight))
        assert change is restride or not torch.equal(before, after)


def test_what_the_counter_does_not_see():
    """The documented limit, which also shows that filters are kept; switching it off and on forgets them."""
    x, weight = problem(*SIZES[0])
    with torch.no_grad():
        before = F.conv2d(x, weight, padding=1)
        weight.data.mul_(2)
        assert torch.equal(F.conv2d(x, weight, padding=1), before)
        d2lfast.backends.conv2d.cache_filters = False
        d2lfast.backends.conv2d.cache_filters = True
        assert torch.equal(F.conv2d(x, weight, padding=1), fresh(x, weight))


def test_training_keeps_nothing():
    x, weight = problem(*SIZES[0])
    F.conv2d(x, weight, padding=1)
    weight.data.mul_(2)
    assert torch.equal(F.conv2d(x, weight, padding=1), fresh(x, weight))
    with torch.no_grad():
        assert torch.equal(F.conv2d(x, weight, padding=1), fresh(x, weight))


def test_weights_without_a_counter():
    x, weight = problem(*SIZES[0])
    with torch.inference_mode():
        weight = weight.clone()
        F.conv2d(x, weight, padding=1)
        weight.mul_(2)
        assert torch.equal(F.conv2d(x, weight, padding=1), fresh(x, weight))


def test_a_new_weight_at_an_old_address():
    """Storage and tensor of a dead weight are soon allocated again."""
    x, _ = problem(*SIZES[0])
    with torch.no_grad():
        for seed in range(50):
            weight = torch.full((32, 16, 3, 3), float(seed))
            assert torch.equal(F.conv2d(x, weight, padding=1), fresh(x, weight))
            del weight


def test_threads(algorithm):
    x, weight = problem(*SIZES[1])
    with torch.no_grad():
        expected = fresh(x, weight)
    wrong = []

    def infer():
        with torch.no_grad(), d2lfast.conv2d_algorithm(algorithm):
            for _ in range(20):
                mine = torch.nn.Parameter(weight.detach().clone())
                for each in (weight, mine):
                    if not torch.equal(F.conv2d(x, each, padding=1), expected):
                        wrong.append(each)

    threads = [threading.Thread(target=infer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
