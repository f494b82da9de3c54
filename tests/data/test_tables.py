import gzip
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from d2lfast.data import SineSeries, SyntheticRegressionData, WeightDecayData
from d2lfast.data.cifar10 import CLASSES, ImageFolder, extract_cifar10
from d2lfast.data.csv_data import CSVData, DiabetesDataset
from d2lfast.data.house_prices import HousePrices, k_fold, log_rmse, read_table, to_features
from d2lfast.data.names import Names, ascii_name, encode_names


class TestCSV:
    @pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
    def test_features_and_label(self, tmp_path, name):
        text = b"-0.5,1e-1,0\n1,2,1\n3,4,1\n"
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        data = DiabetesDataset(tmp_path / name)
        assert len(data) == 3
        x, y = data[0]
        torch.testing.assert_close(x, torch.tensor([-0.5, 0.1]))
        assert y.tolist() == [0]
        assert len(torch.utils.data.DataLoader(data, batch_size=2)) == 2

    def test_headings(self, tmp_path):
        (tmp_path / "t.csv").write_text("a,b\n1,2\n")
        assert DiabetesDataset(tmp_path / "t.csv").columns == ("a", "b")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "is empty"),
            ("a,b\n", "is empty"),
            ("1\n2\n", "has one column"),
            ("1,2\n1,2,3\n", "line 2: 3 columns, expected 2"),
            ("1,2\n1,x\n", "line 2: 'x' is not a number"),
        ],
    )
    def test_bad_files(self, tmp_path, text, message):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
            DiabetesDataset(tmp_path / "t.csv")

    def test_standardised_by_the_training_part(self, tmp_path):
        rows = np.column_stack([np.arange(40) * 3.0 + 5, np.ones(40), np.arange(40) % 2])
        np.savetxt(tmp_path / "t.csv", rows, delimiter=",")
        data = CSVData(tmp_path / "t.csv", 8)
        train = torch.cat([x for x, _ in data.train_dataloader()])
        assert len(train) == 32
        torch.testing.assert_close(train.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
        assert train[:, 0].std(correction=0).item() == pytest.approx(1, rel=1e-5)
        assert sum(len(y) for _, y in data.val_dataloader()) == 8


def test_synthetic_regression():
    data = SyntheticRegressionData(torch.tensor([2.0, -3.4]), 4.2, num_train=50, num_val=30, batch_size=20)
    assert [len(y) for _, y in data.train_dataloader()] == [20, 20, 10]
    assert sum(len(y) for _, y in data.val_dataloader()) == 30
    noise = data.y - data.X @ torch.tensor([[2.0], [-3.4]]) - 4.2
    assert noise.std().item() == pytest.approx(0.01, rel=0.5)


def test_weight_decay_data():
    data = WeightDecayData(20, 100, 200, 5)
    assert data.X.shape == (120, 200)
    assert len(data.train_dataloader()) == 4
    torch.testing.assert_close(data.y[:, 0], data.X.sum(1) * 0.01 + 0.05, atol=0.06, rtol=0)


def test_sine():
    data = SineSeries()
    X, y = next(iter(data.val_dataloader()))
    assert X.shape == (16, 4)
    assert torch.equal(X[0], data.x[600:604])
    assert y[0] == data.x[604]
    assert sum(len(y) for _, y in data.train_dataloader()) == 600


class TestNames:
    @pytest.mark.parametrize(
        ("name", "plain"),
        [
            (" Bélanger\n", "Belanger"),
            ("Müller", "Muller"),
            ("Strauß", "Strauss"),
            ("Łoś", "Los"),
            ("O'Neal", "O'Neal"),
        ],
    )
    def test_ascii(self, name, plain):
        assert ascii_name(name) == plain

    @pytest.mark.parametrize("name", ["王", "", "123", "!"])
    def test_no_letter_left(self, name):
        with pytest.raises(ValueError, match="has no Latin letters"):
            ascii_name(name)

    def test_encode(self):
        tokens, lengths = encode_names(["Ab", "Xyz"])
        assert tokens.tolist() == [[65, 98, 0], [88, 121, 122]]
        assert lengths.tolist() == [2, 3]
        with pytest.raises(ValueError, match="no names"):
            encode_names([])

    def folder(self, path):
        (path / "names").mkdir()
        (path / "names" / "French.txt").write_text(
            "\n".join(["Émile", "Bélanger", "Roy"] * 5), encoding="utf-8"
        )
        (path / "names" / "Greek.txt").write_text("\n".join(["Pappas", "Xenos"] * 5) + "\n\n")
        return path

    def test_a_folder(self, tmp_path):
        data = Names(8, self.folder(tmp_path))
        assert data.languages == ("French", "Greek")
        assert (len(data.train_indices), len(data.val_indices)) == (20, 5)
        seen = {i for part in (data.train_indices, data.val_indices) for i in part.tolist()}
        assert seen == set(range(25))
        tokens, lengths, labels = next(iter(data.train_dataloader()))
        assert tokens.shape == (8, 8)
        assert int(lengths.max()) <= 8
        assert set(labels.tolist()) <= {0, 1}
        assert torch.equal(Names(8, tmp_path).val_indices, data.val_indices)

    def test_the_courses_files(self, tmp_path):
        for part, rows in (("train", '"Abe","English"\n"Rossi","Italian"\n'), ("test", '"Neri","Italian"\n')):
            (tmp_path / f"names_{part}.csv.gz").write_bytes(gzip.compress(rows.encode()))
        data = Names(2, tmp_path)
        assert data.languages == ("English", "Italian")
        assert [y.tolist() for *_, y in data.val_dataloader()] == [[1]]

    @pytest.mark.parametrize(
        ("content", "message"), [(b"", r"Greek\.txt is empty"), (b"\xff", r"Greek\.txt is not in UTF-8")]
    )
    def test_bad_files(self, tmp_path, content, message):
        (self.folder(tmp_path) / "names" / "Greek.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Names(8, tmp_path)

    def test_none(self, tmp_path, monkeypatch):
        monkeypatch.delenv("D2LFAST_DATA", raising=False)
        with pytest.raises(FileNotFoundError, match="There are no names in"):
            Names(8, tmp_path)
        with pytest.raises(FileNotFoundError, match="D2LFAST_DATA"):
            Names(8)


class TestCifar:
    def images(self):
        generator = np.random.default_rng(0)
        return generator.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), [0, 3, 9, 3, 1, 0]

    def archive(self, path, content=None):
        images, labels = self.images()
        data = images.transpose(0, 3, 1, 2).reshape(6, -1)
        with tarfile.open(path, "w:gz") as tar:
            for name in ("data_batch_1", "data_batch_2", "test_batch", "batches.meta"):
                raw = pickle.dumps({b"data": data, b"labels": labels}, protocol=2)
                raw = raw if content is None or name != "data_batch_2" else content
                info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
        return path

    def test_becomes_a_tree_and_is_read_again(self, tmp_path):
        counts = extract_cifar10(self.archive(tmp_path / "c.tar.gz"), tmp_path / "tree")
        assert counts == {"train": 12, "test": 6}
        data = ImageFolder(tmp_path / "tree" / "test")
        images, labels = self.images()
        assert data.classes == tuple(sorted(CLASSES[label] for label in set(labels)))
        assert len(data) == 6
        image, label = data[0]
        assert data.classes[label] == "airplane"
        expected = torch.from_numpy(images[0]).permute(2, 0, 1) / 255
        torch.testing.assert_close(image, expected)
        assert ImageFolder(tmp_path / "tree" / "train", size=(8, 16))[0][0].shape == (3, 8, 16)
        flipped = ImageFolder(tmp_path / "tree" / "test", transform=lambda picture: picture.flip(-1))
        batch, labels = next(iter(DataLoader(flipped, batch_size=6)))
        torch.testing.assert_close(batch[0], image.flip(-1))
        assert labels.tolist() == [label for _, label in flipped.samples]

    def test_an_unpacked_folder(self, tmp_path):
        with tarfile.open(self.archive(tmp_path / "c.tar.gz")) as tar:
            tar.extractall(tmp_path / "raw", filter="data")
        assert extract_cifar10(tmp_path / "raw", tmp_path / "tree")["test"] == 6

    @pytest.mark.parametrize("content", [b"", b"rubbish", pickle.dumps({b"data": 1}), pickle.dumps(print)])
    def test_a_damaged_batch_is_named_and_code_is_not_run(self, tmp_path, content):
        with pytest.raises(ValueError, match="data_batch_2 is damaged"):
            extract_cifar10(self.archive(tmp_path / "c.tar.gz", content), tmp_path / "tree")

    def test_something_else(self, tmp_path):
        (tmp_path / "c.tar.gz").write_bytes(b"no")
        with pytest.raises(ValueError, match=r"c\.tar\.gz is damaged"):
            extract_cifar10(tmp_path / "c.tar.gz", tmp_path / "tree")
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="holds no batch"):
            extract_cifar10(tmp_path / "empty", tmp_path / "tree")
        with pytest.raises(FileNotFoundError, match="no pictures"):
            ImageFolder(tmp_path / "empty")


HOUSES = """Id,Area,Rooms,Street,Alley,SalePrice
1,100,3,Pave,NA,200000
2,200,NA,Grvl,Pave,300000
3,300,5,Pave,NA,400000
4,NA,4,,NA,500000
5,500,2,Pave,NA,100000
"""


class TestHouses:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "kaggle_house_pred_train.csv").write_text(HOUSES)
        return tmp_path

    def test_imputation(self, folder):
        table = read_table(folder / "kaggle_house_pred_train.csv")
        X, names = to_features({name: table[name] for name in ("Area", "Rooms", "Street", "Alley")})
        assert names == [
            "Area",
            "Rooms",
            "Street_Grvl",
            "Street_Pave",
            "Street_nan",
            "Alley_Pave",
            "Alley_nan",
        ]
        assert X.shape == (5, 7)
        assert X[3, 0] == 0
        assert X[1, 1] == 0
        torch.testing.assert_close(X[[0, 1, 2, 4], 0].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
        assert X[:, 2:].sum(1).tolist() == [2] * 5

    def test_deletion(self, folder):
        data = HousePrices(2, "delete-rows", root=folder)
        assert len(data.X) == 3
        torch.testing.assert_close(data.y.exp().flatten(), torch.tensor([2e5, 4e5, 1e5]))
        features = HousePrices(2, "delete-columns", root=folder).features
        assert not any(name.startswith(("Area", "Rooms")) for name in features)
        with pytest.raises(ValueError, match="missing must be"):
            HousePrices(2, "ignore", root=folder)

    def test_folds(self, folder):
        parts = k_fold(HousePrices(2, root=folder), 5)
        rows = [torch.cat([y for _, y in part.val_dataloader()]) for part in parts]
        assert torch.equal(torch.cat(rows), parts[0].y)
        assert all(sum(len(y) for _, y in part.train_dataloader()) == 4 for part in parts)
        with pytest.raises(ValueError, match="k must be"):
            k_fold(parts[0], 1)

    def test_bad_files(self, folder):
        path = folder / "kaggle_house_pred_train.csv"
        path.write_text(HOUSES + "6,1\n")
        with pytest.raises(ValueError, match="line 7: 2 columns, expected 6"):
            HousePrices(root=folder)
        path.write_text("")
        with pytest.raises(ValueError, match="is empty"):
            HousePrices(root=folder)
        path.write_text("Id,Area\n1,2\n")
        with pytest.raises(ValueError, match="no column SalePrice"):
            HousePrices(root=folder)

    def test_log_rmse(self):
        value = log_rmse(torch.tensor([0.5, torch.e]), torch.tensor([1.0, 1.0]))
        assert value.item() == pytest.approx(0.5**0.5)
