"""d2lfast.cuda_graph, and networks on a device."""

import copy

import pytest
import torch

import d2lfast
from d2lfast import graphs
from d2lfast.models import LeNet


def test_refuses_other_devices():
    with pytest.raises(ValueError, match="example inputs"):
        d2lfast.cuda_graph(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="CUDA device, but got one on cpu"):
        d2lfast.cuda_graph(torch.nn.Linear(2, 2), torch.ones(1, 2))


def test_warm_up_changes_nothing(monkeypatch):
    """With a stand-in for torch's capture, which runs the module as the warm-up does."""
    module = torch.nn.BatchNorm2d(3)
    example = torch.randn(2, 3, 4, 4)

    def capture(callable_, examples, num_warmup_iters):
        for _ in range(num_warmup_iters):
            callable_(*examples).sum().backward()
        return callable_

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(graphs, "_device_type", lambda tensor: "cuda")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert d2lfast.cuda_graph(module, example) is module
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert module.weight.grad is None


@pytest.mark.parametrize("to_none", [None, True, False])
def test_gradients_add_up(monkeypatch, to_none):
    """With a stand-in that gives its own gradients away and writes over them, as torch's graphs do."""

    def capture(module, examples, num_warmup_iters):
        parameters, original = [*module.parameters()], module.forward
        own = [torch.zeros_like(parameter) for parameter in parameters]

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, input, *parameters):
                ctx.input = input
                return original(input).detach()

            @staticmethod
            def backward(ctx, grad):
                with torch.enable_grad():
                    found = torch.autograd.grad(original(ctx.input), parameters, grad)
                for static, gradient in zip(own, found):
                    static.copy_(gradient)
                return None, *(static.detach() for static in own)

        module.forward = lambda input: Graphed.apply(input, *parameters)
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    monkeypatch.setattr(graphs, "_device_type", lambda tensor: "cuda")
    eager = torch.nn.Linear(3, 2)
    graphed = d2lfast.cuda_graph(copy.deepcopy(eager), torch.randn(4, 3))
    for _ in range(3):
        input = torch.randn(4, 3)
        for module in (eager, graphed):
            output = module(input)
            if to_none is not None:
                module.zero_grad(set_to_none=to_none)
            output.square().sum().backward()
        for wanted, got in zip(eager.parameters(), graphed.parameters()):
            torch.testing.assert_close(got.grad, wanted.grad)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_captured_network_trains_like_the_eager_one(layout):
    def build():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            d2lfast.nn.Conv2d(1, 6, 5, padding=2),
            torch.nn.ReLU(),
            d2lfast.nn.MaxPool2d(2),
            d2lfast.nn.BatchNorm2d(6),
            d2lfast.nn.Conv2d(6, 6, 3, padding=1, groups=6),
            d2lfast.nn.AvgPool2d(2),
            d2lfast.nn.AdaptiveAvgPool2d(1),
        )
        return network.cuda().to(memory_format=layout)

    example = torch.randn(8, 1, 28, 28, device="cuda")
    eager, graphed = build(), d2lfast.cuda_graph(build(), example)
    for step in range(3):
        torch.manual_seed(step)
        images = torch.randn_like(example)
        results = [network(images).square().mean() for network in (eager, graphed)]
        for result in results:
            result.backward()
        torch.testing.assert_close(results[1], results[0])
    for wanted, got in zip(eager.parameters(), graphed.parameters()):
        torch.testing.assert_close(got.grad, wanted.grad)
    for wanted, got in zip(eager.buffers(), graphed.buffers()):
        torch.testing.assert_close(got, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_network_is_trained_by_ddp(tmp_path):
    torch.manual_seed(0)
    alone = LeNet().cuda()
    images, labels = torch.randn(8, 1, 28, 28, device="cuda"), torch.randint(10, (8,), device="cuda")
    torch.distributed.init_process_group("nccl", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shared = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(alone), device_ids=[0])
        for network in (alone, shared):
            torch.nn.functional.cross_entropy(network(images), labels).backward()
        for wanted, got in zip(alone.parameters(), shared.parameters()):
            torch.testing.assert_close(got.grad, wanted.grad)
    finally:
        torch.distributed.destroy_process_group()
