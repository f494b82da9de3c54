"""The blocks by themselves: shapes of the book's own checks, lazy and sized forms, both namespaces."""

import copy
import pickle

import pytest
import torch
from torch import nn

import d2lfast
from d2lfast import models

LAYERS = pytest.mark.parametrize("layers", [d2lfast.nn, nn], ids=["d2lfast", "torch"])
# Builders of a block, channels of the input, and the output's shape for an input of 8x8.
BLOCKS = {
    "residual": (lambda **kw: models.Residual(3, **kw), 3, (3, 8, 8)),
    "residual-strided": (lambda **kw: models.Residual(6, True, 2, **kw), 3, (6, 4, 4)),
    "resnext": (lambda **kw: models.ResNeXtBlock(32, 16, 1, **kw), 32, (32, 8, 8)),
    "resnext-strided": (lambda **kw: models.ResNeXtBlock(32, 8, 0.5, True, 2, **kw), 5, (32, 4, 4)),
    "inception": (lambda **kw: models.Inception(4, (3, 5), (2, 6), 7, **kw), 9, (22, 8, 8)),
    "dense": (lambda **kw: models.DenseBlock(2, 10, **kw), 3, (23, 8, 8)),
    "transition": (lambda **kw: models.transition_block(10, **kw), 23, (10, 4, 4)),
    "vgg": (lambda **kw: models.vgg_block(2, 6, **kw), 3, (6, 4, 4)),
    "vgg-class": (lambda **kw: models.VGGBlock(2, 6, **kw), 3, (6, 4, 4)),
    "nin": (lambda **kw: models.nin_block(6, 3, 2, 1, **kw), 3, (6, 4, 4)),
}
ALL = pytest.mark.parametrize("name", BLOCKS)


@ALL
@LAYERS
def test_lazy_and_sized_blocks_are_the_same(name, layers):
    build, channels, shape = BLOCKS[name]
    x = torch.rand(4, channels, 8, 8)
    lazy, sized = build(layers=layers), build(in_channels=channels, layers=layers)
    assert lazy(x).shape == (4, *shape)
    lazy.load_state_dict(sized.state_dict())
    assert list(lazy.state_dict()) == list(sized.state_dict())
    for training in (True, False):
        torch.testing.assert_close(lazy.train(training)(x), sized.train(training)(x))
    assert [type(module) for module in lazy.modules()] == [type(module) for module in sized.modules()]


@ALL
def test_twins_of_blocks_agree(name):
    build, channels, _ = BLOCKS[name]
    ours = build(in_channels=channels).double()
    native = build(in_channels=channels, layers=nn).double()
    native.load_state_dict(ours.state_dict())
    x = torch.randn(4, channels, 8, 8, dtype=torch.double)
    results = []
    for block in (ours, native):
        leaf = x.clone().requires_grad_()
        block(leaf).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    torch.testing.assert_close(*results)


@ALL
def test_copies_and_pickles(name):
    build, channels, _ = BLOCKS[name]
    x = torch.rand(2, channels, 8, 8)
    waiting = build().eval()
    waiting(x)
    for block in (waiting, build(in_channels=channels).eval()):
        twin = pickle.loads(pickle.dumps(copy.deepcopy(block)))
        assert torch.equal(twin(x), block(x))


def test_the_books_own_checks_of_shapes():
    assert models.Residual(3)(torch.rand(4, 3, 6, 6)).shape == (4, 3, 6, 6)
    assert models.Residual(6, use_1x1conv=True, strides=2)(torch.rand(4, 3, 6, 6)).shape == (4, 6, 3, 3)
    assert models.ResNeXtBlock(32, 16, 1)(torch.randn(4, 32, 96, 96)).shape == (4, 32, 96, 96)


def test_the_width_of_a_group():
    block = models.ResNeXtBlock(32, 8, 0.5, in_channels=32)
    assert block.conv2.groups == 2
    assert block.conv2.in_channels == 16


@LAYERS
@pytest.mark.parametrize(("channels", "stride"), [((3, 10), 1), ((3, 3), 1), ((3, 10), 2), ((4, 4), 3)])
def test_shortcut_with_every_stride(channels, stride, layers):
    block = models.ShortCut(*channels, stride, layers=layers)
    size = -(-47 // stride)
    assert block(torch.rand(2, channels[0], 47, 47)).shape == (2, channels[1], size, size)
    assert (type(block.shortcut) is nn.Identity) == (channels[0] == channels[1] and stride == 1)


def test_course_inception_concatenates_pool_1x1_5x5_3x3():
    block = models.CourseInception(10).double()
    x = torch.randn(2, 10, 12, 12, dtype=torch.double)
    out = block(x)
    assert out.shape == (2, 88, 12, 12)
    torch.testing.assert_close(
        out[:, 24:40], nn.functional.conv2d(x, block.branch1x1.weight, block.branch1x1.bias)
    )
    pooled = nn.functional.avg_pool2d(x, 3, 1, 1)
    expected = nn.functional.conv2d(pooled, block.branch_pool.weight, block.branch_pool.bias)
    torch.testing.assert_close(out[:, :24], expected)


@pytest.mark.parametrize("arch", [((1, 4),), ((1, 4), (2, 6), (3, 8))])
def test_vgg_of_any_arch(arch):
    model = models.VGG(arch, 5, 3, image_size=16)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 5)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == sum(n for n, _ in arch)


@LAYERS
def test_anynet_of_any_arch(layers):
    # Depth, channels, width of a group, multiple of the bottleneck.
    model = models.AnyNet(((1, 8, 4, 1), (2, 12, 4, 1)), 8, 5, 3, layers=layers)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert [len(stage) for stage in model.net[1:3]] == [1, 2]


@pytest.mark.parametrize(
    ("name", "size"), [("lenet", 28), ("bn-lenet", 28), ("resnet18", 64), ("densenet", 64)]
)
def test_other_channels_and_classes(name, size):
    model = models.registry.NETWORKS[name].build(num_classes=7, in_channels=3)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


class TestBatchNormScratch:
    @pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3, 2)])
    def test_is_torchs_but_for_the_moving_variance(self, shape):
        scratch = models.BatchNorm(5, len(shape)).double()
        native = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5).double()
        count = shape[0] * (shape[2] * shape[3] if len(shape) == 4 else 1)
        for _ in range(3):
            x = torch.randn(shape, dtype=torch.double) * 3 + 1
            torch.testing.assert_close(scratch(x), native(x))
        torch.testing.assert_close(scratch.moving_mean.flatten(), native.running_mean)
        # Biased against unbiased: only what was added to the initial 1 differs.
        start = 0.9**3
        added = (native.running_var - start) * (count - 1) / count + start
        torch.testing.assert_close(scratch.moving_var.flatten(), added)
        x = torch.randn(shape, dtype=torch.double)
        with torch.no_grad():
            native.running_var.copy_(scratch.moving_var.flatten())
        torch.testing.assert_close(scratch.eval()(x), native.eval()(x))

    def test_mode_follows_gradients_as_in_the_book_or_the_module(self):
        x = torch.randn(8, 3)
        arguments = (torch.ones(1, 3), torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 3), 1e-5, 0.1)
        training = models.batch_norm(x, *arguments)
        assert not torch.equal(training[1], arguments[2])
        with torch.no_grad():
            evaluation = models.batch_norm(x, *arguments)
            assert torch.equal(evaluation[1], arguments[2])
            torch.testing.assert_close(models.batch_norm(x, *arguments, training=True)[0], training[0])
        with pytest.raises(ValueError, match="3 dimensions"):
            models.batch_norm(torch.rand(2, 3, 4), *arguments)

    def test_of_a_single_row_is_zero(self):
        assert torch.equal(models.BatchNorm(3, 2)(torch.randn(1, 3)), torch.zeros(1, 3))

    def test_state_travels(self):
        layer = models.BatchNorm(3, 2)
        layer(torch.randn(4, 3))
        assert set(layer.state_dict()) == {"gamma", "beta", "moving_mean", "moving_var"}
        assert not layer.moving_mean.requires_grad
