import gzip
import hashlib
import logging
import re
import socket
import struct
import sys
import threading
import time

import pytest
import torch
from ops.op_tester import RecordOperators

from d2lfast import book
from d2lfast.data import TensorLoader, default_images, digits, download, read_idx
from d2lfast.data import fashion_mnist as load
from d2lfast.data.download import Remote, fetch

module = sys.modules["d2lfast.data.fashion_mnist"]
NAMES = sorted(module.FILES)


def idx(tensor):
    header = struct.pack(">HBB", 0, 8, tensor.dim()) + struct.pack(f">{tensor.dim()}I", *tensor.shape)
    return header + tensor.to(torch.uint8).numpy().tobytes()


def contents(train=30, test=20):
    generator = torch.Generator().manual_seed(0)
    files = {}
    for part, count in (("train", train), ("t10k", test)):
        images = torch.randint(256, (count, 28, 28), generator=generator)
        files[f"{part}-images-idx3-ubyte"] = idx(images)
        files[f"{part}-labels-idx1-ubyte"] = idx(torch.arange(count) % 10)
    return files


def write(folder, files, gz=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / (f"{name}.gz" if gz else name)).write_bytes(gzip.compress(data) if gz else data)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No test uses the network, or data that happen to be on the machine."""
    monkeypatch.delenv("D2LFAST_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "MIRRORS", ((tmp_path / "no-mirror").as_uri() + "/",))


class TestIdx:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
    @pytest.mark.parametrize("shape", [(7,), (3, 28, 28), (2, 3), (0, 4)])
    def test_reads_what_was_written(self, tmp_path, pack, shape):
        values = torch.randint(256, shape, dtype=torch.uint8)
        path = tmp_path / "file"
        path.write_bytes(pack(idx(values)))
        result = read_idx(path, dims=len(shape))
        assert result.dtype == torch.uint8
        assert torch.equal(result, values)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda data: b"", "not an IDX file"),
            (lambda data: b"\0\0\x0d\3" + data[4:], "not an IDX file"),
            (lambda data: b"<htm" + data[4:], "not an IDX file"),
            (lambda data: data[:10], "ends within its header"),
            (lambda data: data[:-1], "is damaged: 39 bytes, expected 40"),
            (lambda data: data + b"\0", "is damaged: 41 bytes, expected 40"),
            (lambda data: gzip.compress(data)[:-12], "cannot be unpacked"),
            (lambda data: gzip.compress(data)[:-5] + b"12345", "cannot be unpacked"),
            (lambda data: b"\0\0\x08\3" + b"\xff" * 12 + data, "is damaged"),
            (lambda data: idx(torch.zeros(4)), "holds 1-dimensional data, expected 3"),
        ],
    )
    def test_a_damaged_file_is_named(self, tmp_path, damage, message):
        path = tmp_path / "broken-file"
        path.write_bytes(damage(idx(torch.zeros(2, 3, 4))))
        with pytest.raises(ValueError, match=message) as info:
            read_idx(path, dims=3)
        assert str(path) in str(info.value)

    def test_no_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent"):
            read_idx(tmp_path / "absent")


class TestFolder:
    @pytest.mark.parametrize("subfolder", ["fashion-mnist", "FashionMNIST/raw", "."])
    @pytest.mark.parametrize("gz", [True, False])
    def test_is_found(self, tmp_path, monkeypatch, subfolder, gz):
        files = contents()
        write(tmp_path / "data" / subfolder, files, gz)
        monkeypatch.setenv("D2LFAST_DATA", str(tmp_path / "data"))
        images = default_images()
        assert images.name == "Fashion-MNIST"
        assert images.source == str(tmp_path / "data" / subfolder)
        assert str(images).endswith("30 training and 20 validation images")
        assert images.train_images.shape == (30, 1, 28, 28)
        assert images.train_images.dtype == torch.float32
        assert images.validation_images.shape == (20, 1, 28, 28)
        assert images.train_labels.tolist() == [i % 10 for i in range(30)]
        assert images.train_labels.dtype == torch.int64
        raw = torch.frombuffer(bytearray(files["train-images-idx3-ubyte"][16:]), dtype=torch.uint8)
        torch.testing.assert_close(images.train_images.flatten(), raw / 255)
        assert 0 <= images.train_images.min() < 0.01
        assert 0.99 < images.train_images.max() <= 1

    def test_the_books_loaders(self, tmp_path, monkeypatch):
        write(tmp_path / "fashion-mnist", contents())
        monkeypatch.setenv("D2LFAST_DATA", str(tmp_path))
        train, test = book.load_data_fashion_mnist(8, resize=32)
        assert [len(y) for _, y in train] == [8, 8, 8, 6]
        X, y = next(iter(test))
        assert X.shape == (8, 1, 32, 32)
        assert book.get_fashion_mnist_labels(y)[:2] == ["t-shirt", "trouser"]

    def test_an_argument_goes_before_the_variable(self, tmp_path, monkeypatch):
        write(tmp_path / "a", contents(train=3))
        write(tmp_path / "b", contents(train=4))
        monkeypatch.setenv("D2LFAST_DATA", str(tmp_path / "a"))
        assert len(load().train_labels) == 3
        assert len(load(tmp_path / "b").train_labels) == 4

    @pytest.mark.parametrize("name", NAMES)
    def test_a_missing_file_is_named(self, tmp_path, name):
        write(tmp_path, {key: data for key, data in contents().items() if key != name})
        with pytest.raises(FileNotFoundError, match=f"incomplete: no {name}"):
            default_images(tmp_path)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_damaged_file_is_named(self, tmp_path, name):
        write(tmp_path, contents())
        path = tmp_path / f"{name}.gz"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            default_images(tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"train-labels-idx1-ubyte": idx(torch.zeros(29))}, "holds 29 labels, but .* 30 images"),
            ({"t10k-labels-idx1-ubyte": idx(torch.full((20,), 10))}, "has a label 10"),
            ({"t10k-images-idx3-ubyte": idx(torch.zeros(20, 8, 8))}, "images of 8x8, expected 28x28"),
            ({"t10k-images-idx3-ubyte": idx(torch.zeros(20))}, "holds 1-dimensional"),
            (contents(train=0), "no images"),
        ],
    )
    def test_files_that_do_not_fit(self, tmp_path, change, message):
        write(tmp_path, contents() | change)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


class TestDownload:
    @pytest.fixture
    def mirror(self, tmp_path, monkeypatch):
        write(tmp_path / "mirror", contents())
        known = {}
        for name in module.FILES:
            data = (tmp_path / "mirror" / f"{name}.gz").read_bytes()
            known[name] = Remote(hashlib.md5(data).hexdigest(), len(data))
        monkeypatch.setattr(module, "FILES", known)
        wrong = tmp_path / "wrong"
        write(wrong, {name: b"a page of the hotel's network" for name in known})
        monkeypatch.setattr(
            module, "MIRRORS", tuple(f"{(tmp_path / n).as_uri()}/" for n in ("gone", "wrong", "mirror"))
        )
        return tmp_path / "mirror"

    def test_takes_the_first_mirror_with_the_right_file_and_keeps_it(self, mirror, tmp_path, monkeypatch):
        images = default_images()
        assert images.source == str(tmp_path / "cache" / "d2lfast" / "fashion-mnist")
        kept = sorted(path.name for path in (tmp_path / "cache/d2lfast/fashion-mnist").iterdir())
        assert kept == [f"{name}.gz" for name in NAMES]
        monkeypatch.setattr(module, "MIRRORS", ())
        assert torch.equal(default_images().train_images, images.train_images)

    def test_mends_a_damaged_download(self, mirror, tmp_path, caplog):
        load()
        path = tmp_path / "cache/d2lfast/fashion-mnist/train-images-idx3-ubyte.gz"
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        load()
        assert path.read_bytes() == whole
        assert f"{path} is damaged and is downloaded again" in caplog.text

    def test_one_that_fails_says_where_to_put_the_file(self, mirror, tmp_path, monkeypatch):
        monkeypatch.setattr(module, "MIRRORS", ((tmp_path / "gone").as_uri() + "/",))
        where = tmp_path / "cache/d2lfast/fashion-mnist/train-labels-idx1-ubyte.gz"
        with pytest.raises(module.Unavailable, match=rf"put it there by hand: {re.escape(str(where))}"):
            load()

    def test_goes_on_when_the_named_folder_has_none(self, mirror, tmp_path, monkeypatch, caplog):
        monkeypatch.setenv("D2LFAST_DATA", str(tmp_path / "nothing"))
        assert default_images().name == "Fashion-MNIST"
        assert "Fashion-MNIST is not in" in caplog.text

    def test_is_not_tried_on_request(self, mirror, tmp_path):
        with pytest.raises(module.Unavailable):
            load(download=False)
        assert not (tmp_path / "cache").exists()

    def test_offline_the_digits_are_used_and_that_is_said(self, caplog):
        with caplog.at_level(logging.WARNING):
            images = default_images()
        assert images.source == "scikit-learn"
        assert "could not be downloaded" in caplog.text
        assert "digits instead" in caplog.text

    def test_a_folder_that_cannot_be_written_is_as_offline(self, mirror, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert default_images().source == "scikit-learn"

    @pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\nsome"])
    def test_a_server_that_hangs_is_given_up(self, answer, tmp_path, monkeypatch):
        monkeypatch.setattr(download, "CONNECT_SECONDS", 0.5)
        monkeypatch.setattr(download, "BYTES_PER_SECOND", 2_000)
        server = socket.create_server(("127.0.0.1", 0))
        connections = []

        def serve():
            connection, _ = server.accept()
            connections.append(connection)
            connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file"
        with pytest.raises(OSError, match=r"no answer|timed out|too slow"):
            fetch([url], tmp_path / "file", Remote("0" * 32, 1000))
        assert time.monotonic() - start < 5
        assert {path.name for path in tmp_path.iterdir()} <= {"file.part"}
        for each in (*connections, server):
            each.close()

    def test_known_sizes(self):
        assert sum(remote.size for remote in module.FILES.values()) == 30_878_645
        assert all(len(remote.md5) == 32 for remote in module.FILES.values())


class TestDigits:
    def test_are_real_images_in_a_fixed_order(self):
        first, second = digits(), digits()
        assert first.train_images.shape == (1500, 1, 28, 28)
        assert first.validation_images.shape == (297, 1, 28, 28)
        assert torch.equal(first.train_images, second.train_images)
        assert torch.equal(first.train_labels, second.train_labels)
        assert first.train_images.min() == 0
        assert 0.9 < first.train_images.max() <= 1
        counts = torch.cat([first.train_labels, first.validation_labels]).bincount()
        assert len(counts) == 10
        assert counts.min() > 170

    def test_without_scikit_learn_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(ModuleNotFoundError, match=re.escape("pip install 'd2lfast[data]'")):
            default_images()


class TestLoader:
    X, y = torch.arange(23.0).view(23, 1), torch.arange(23)

    def loader(self, seed=0, **kwargs):
        generator = torch.Generator().manual_seed(seed)
        return TensorLoader(
            self.X, self.y, generator=generator, **{"batch_size": 5, "shuffle": True, **kwargs}
        )

    def test_in_order(self):
        batches = list(self.loader(shuffle=False))
        assert len(batches) == len(self.loader()) == 5
        assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
        assert torch.equal(torch.cat([y for _, y in batches]), self.y)

    def test_shuffled_batches_hold_everything_once_and_stay_paired(self):
        batches = list(self.loader())
        assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
        assert all(torch.equal(x[:, 0].long(), y) for x, y in batches)
        y = torch.cat([y for _, y in batches])
        assert not torch.equal(y, self.y)
        assert torch.equal(y.sort().values, self.y)

    def test_the_order_depends_on_the_seed_and_the_pass_alone(self):
        def orders(loader):
            return [torch.cat([y for _, y in loader]).tolist() for _ in range(3)]

        a, b, c = orders(self.loader(1)), orders(self.loader(1)), orders(self.loader(2))
        assert a == b
        assert a[0] != a[1] != a[2]
        assert a[0] != c[0]

    def test_batches_are_fetched_whole(self):
        """One selection from each tensor for a batch, none for a sample."""
        loader = TensorLoader(torch.rand(20, 1, 4, 4), torch.arange(20), batch_size=8, shuffle=True)
        with RecordOperators("aten") as recorder:
            assert sum(1 for _ in loader) == 3
        names = [name for name in recorder.names() if "index" in name or "select" in name or "stack" in name]
        assert names == ["aten::index_select"] * 6

    def test_elsewhere(self):
        loader = TensorLoader(self.X, self.y, batch_size=5, transform=lambda x: x + 1)
        other = loader.to("meta")
        assert loader.nbytes == 23 * 12
        assert [batch[0].device.type for batch in other] == ["meta"] * 5
        assert torch.equal(next(iter(loader))[0], self.X[:5] + 1)

    def test_wrong_arguments(self):
        with pytest.raises(ValueError, match="batch_size must be positive"):
            self.loader(batch_size=0)
        with pytest.raises(ValueError, match="one length"):
            TensorLoader(self.X, self.y[:3], batch_size=2)
        with pytest.raises(ValueError, match="one length"):
            TensorLoader(batch_size=2)
