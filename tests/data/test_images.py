import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from d2lfast.data import ImageData, Images
from d2lfast.data.augmentation import (
    ColorJitter,
    Compose,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
)
from d2lfast.data.image_data import resized
from d2lfast.data.show import show_images

module = sys.modules["d2lfast.data.image_data"]


def images(train=20, validation=6):
    generator = torch.Generator().manual_seed(0)
    parts = []
    for count in (train, validation):
        bytes_ = torch.randint(256, (count, 1, 28, 28), generator=generator)
        parts += [bytes_ / 255, torch.arange(count) % 3]
    return Images("noise", "memory", ("a", "b", "c"), *parts)


class TestImageData:
    def test_batches_and_items(self):
        data = ImageData(images(), 8)
        assert [len(X) for X, _ in data.train_dataloader()] == [8, 8, 4]
        X, y = next(iter(data.val_dataloader()))
        assert torch.equal(X[2], data.val[2][0])
        assert int(y[2]) == data.val[2][1]
        assert data.text_labels(y[:4]) == ["a", "b", "c", "a"]
        assert len(data.train) == 20

    def test_resized(self):
        data = ImageData(images(), 8, (56, 40))
        X, _ = next(iter(data.val_dataloader()))
        assert X.shape == (6, 1, 56, 40)
        assert X.dtype == torch.float32
        expected = F.interpolate(images().validation_images, (56, 40), mode="bilinear", antialias=True)
        torch.testing.assert_close(X, expected, atol=0.5 / 255 + 1e-6, rtol=0)

    def test_augments_training_alone(self):
        data = ImageData(images(), 20, augment=lambda batch: batch * 0)
        assert next(iter(data.train_dataloader()))[0].abs().max() == 0
        assert next(iter(data.val_dataloader()))[0].abs().max() > 0

    def test_large_ones_are_mapped_and_made_again_if_damaged(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(module, "_CACHE_BYTES", 1000)
        source = images().train_images
        first = resized(source, 40).clone()
        (path,) = (tmp_path / "d2lfast" / "resized").iterdir()
        assert np.load(path, mmap_mode="r").shape == (20, 1, 40, 40)
        assert torch.equal(resized(source, 40), first)
        written = path.stat().st_mtime_ns
        assert torch.equal(resized(source, 40), first)
        assert path.stat().st_mtime_ns == written
        whole = path.read_bytes()
        for damage in (whole[:-100], b"", b"something else"):
            path.write_bytes(damage)
            assert torch.equal(resized(source, 40), first)
            assert path.read_bytes() == whole
        resized(source * 0.5, 40)
        assert len(list((tmp_path / "d2lfast" / "resized").iterdir())) == 2

    def test_visualize(self):
        data = ImageData(images(), 8)
        axes = data.visualize(next(iter(data.val_dataloader())), ncols=4)
        assert [each.get_title() for each in axes] == ["a", "b", "c", "a"]


def test_show_images_takes_colours_and_grays():
    axes = show_images([torch.rand(3, 8, 8), torch.rand(8, 8), np.zeros((8, 8, 3))], 2, 2, titles="abc")
    assert [len(each.images) for each in axes] == [1, 1, 1, 0]


class TestAugmentation:
    X = torch.rand(64, 3, 9, 7, generator=torch.Generator().manual_seed(1))

    @pytest.mark.parametrize(("kind", "dim"), [(RandomHorizontalFlip, 3), (RandomVerticalFlip, 2)])
    def test_flips(self, kind, dim):
        assert torch.equal(kind(0)(self.X), self.X)
        assert torch.equal(kind(1)(self.X), self.X.flip(dim))
        flipped = (kind()(self.X) != self.X).any(1).any(1).any(1).sum().item()
        assert 15 < flipped < 49

    def test_crop_shifts(self):
        out = RandomCrop(2)(self.X)
        assert out.shape == self.X.shape
        padded = F.pad(self.X, (2, 2, 2, 2))
        for image, source in zip(out[:8], padded):
            found = [torch.equal(image, source[:, i : i + 9, j : j + 7]) for i in range(5) for j in range(5)]
            assert any(found)

    def test_resized_crop(self):
        whole = RandomResizedCrop((9, 7), scale=(1, 1), ratio=(7 / 9, 7 / 9))(self.X)
        torch.testing.assert_close(whole, self.X, atol=1e-5, rtol=0)
        out = RandomResizedCrop((5, 6))(self.X)
        assert out.shape == (64, 3, 5, 6)
        assert out.min() >= 0
        assert out.max() <= 1
        ramp = torch.linspace(0, 1, 32).expand(16, 1, 32, 32)
        spread = RandomResizedCrop((32, 32), scale=(0.25, 0.25), ratio=(1, 1))(ramp)
        widths = spread[:, 0, 0, -1] - spread[:, 0, 0, 0]
        torch.testing.assert_close(widths, torch.full((16,), 0.5), atol=0.05, rtol=0)

    def test_colours(self):
        bright = ColorJitter(brightness=0.5)(self.X * 0.5)
        factors = (bright / (self.X * 0.5)).flatten(1)
        torch.testing.assert_close(factors, factors[:, :1].expand_as(factors), atol=1e-3, rtol=0)
        assert 0.5 <= factors.min() < 0.7
        assert 1.3 < factors.max() <= 1.5
        gray = torch.full((4, 3, 2, 2), 0.4)
        torch.testing.assert_close(ColorJitter(contrast=0.9, saturation=0.9, hue=0.5)(gray), gray)
        with pytest.raises(ValueError, match="hue"):
            ColorJitter(hue=1)

    def test_hue_turns_the_circle(self):
        import colorsys

        out = ColorJitter(hue=0.5)(self.X)
        for image, source in zip(out[:6], self.X):
            turns = set()
            for pixel, old in zip(image.flatten(1).T.tolist(), source.flatten(1).T.tolist()):
                h, s, v = colorsys.rgb_to_hsv(*pixel)
                h0, s0, v0 = colorsys.rgb_to_hsv(*old)
                assert (s, v) == (pytest.approx(s0, abs=1e-4), pytest.approx(v0, abs=1e-4))
                if s0 > 0.05:
                    turns.add(round(((h - h0) % 1) * 100) % 100)
            assert len(turns) <= 2

    def test_gray_images_keep_their_hue(self):
        X = self.X[:, :1]
        assert torch.equal(ColorJitter(saturation=0.5, hue=0.5)(X), X)

    def test_one_after_the_other(self):
        change = Compose([RandomHorizontalFlip(1), RandomVerticalFlip(1)])
        assert torch.equal(change(self.X), self.X.flip(2, 3))
