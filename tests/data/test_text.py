import logging
import os
import sys
import zipfile

import pytest
import torch

from d2lfast.data import MTFraEng, TextData, TimeMachine, Vocab, english_text, tokenize, truncate_pad
from d2lfast.data.files import SHA1

TEXT = (
    "The Time Traveller (for so it will be convenient to speak of him)\nwas expounding a recondite matter. "
)
PAIRS = (
    "Go.\tVa !\nHi.\tSalut !\nRun!\tCours\u202f!\nI won!\tJ'ai gagné !\nI won!\tJe l'ai emporté !\n"
    "Go on.\tVas-y.\n"
)
HAVE = os.environ.get("D2LFAST_DATA", "")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.delenv("D2LFAST_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("d2lfast.data.files.DATA_URL", "file:///nowhere/")


class TestVocab:
    def test_sorted_with_unknown(self):
        vocab = Vocab([["b", "a", "b"], ["c"]], reserved_tokens=["<pad>"])
        assert vocab.idx_to_token == ["<pad>", "<unk>", "a", "b", "c"]
        assert vocab.token_freqs[0] == ("b", 2)
        assert vocab["b"] == 3
        assert vocab[["a", ["z"]]] == [2, [1]]
        assert vocab.unk == 1
        assert len(vocab) == 5

    def test_rare_tokens_are_unknown(self):
        assert Vocab(list("aab"), min_freq=2).idx_to_token == ["<unk>", "a"]

    def test_to_tokens_of_one_and_of_several(self):
        vocab = Vocab(list("ab"))
        assert vocab.to_tokens(1) == "a"
        assert vocab.to_tokens(torch.tensor(2)) == "b"
        assert vocab.to_tokens([1]) == ["a"]
        assert vocab.to_tokens(torch.tensor([1, 2])) == ["a", "b"]

    def test_of_keeps_the_numbers(self):
        vocab = Vocab(list("hello"))
        assert Vocab.of(vocab.idx_to_token).token_to_idx == vocab.token_to_idx

    def test_tokenize_and_truncate_pad(self):
        assert tokenize(["a b", "c"]) == [["a", "b"], ["c"]]
        assert tokenize(["ab"], "char") == [["a", "b"]]
        with pytest.raises(ValueError, match="'word' or 'char'"):
            tokenize([], "line")
        assert truncate_pad([1, 2, 3], 2, 0) == [1, 2]
        assert truncate_pad([1], 3, 0) == [1, 0, 0]


class TestTexts:
    def test_windows_are_shifted_by_one(self):
        data = TextData(TEXT, batch_size=4, num_steps=5, num_train=10, num_val=6)
        words = "".join(data.vocab.to_tokens(data.corpus))
        assert words.startswith("the time traveller for so it will be")
        for x, y in zip(data.X, data.Y):
            assert torch.equal(x[1:], y[:-1])
        assert [len(X) for X, _ in data.train_dataloader()] == [4, 4, 2]
        validation = torch.cat([X for X, _ in data.val_dataloader()])
        assert torch.equal(validation, data.X[10:16])
        assert len(data.X) == len(data.corpus) - 5

    def test_a_short_text_is_validated_on_its_end(self):
        data = TextData(TEXT, 4, 5, num_train=10_000, num_val=7)
        assert sum(len(X) for X, _ in data.val_dataloader()) == 7

    @pytest.mark.parametrize(("text", "steps"), [("abc", 3), ("", 1), ("1 2 3", 4)])
    def test_too_short(self, text, steps):
        with pytest.raises(ValueError, match=rf"need at least {steps + 1}"):
            TextData(text, 2, steps)

    def test_a_file(self, tmp_path, offline):
        (tmp_path / "timemachine.txt").write_text(TEXT)
        assert len(TimeMachine(2, 4, root=tmp_path).vocab) == 24
        text, source = english_text(tmp_path)
        assert text == TEXT
        assert str(tmp_path) in source

    @pytest.mark.parametrize(
        ("content", "message"), [(b"", "empty"), (b"\xff\xfe\x00", "not a text in UTF-8")]
    )
    def test_a_bad_file_is_named(self, tmp_path, offline, content, message):
        (tmp_path / "timemachine.txt").write_bytes(content)
        for call in (lambda: TimeMachine(2, 4, root=tmp_path), lambda: english_text(tmp_path)):
            with pytest.raises(ValueError, match=rf"timemachine\.txt (is )?{message}"):
                call()

    def test_offline_the_class_says_where_to_put_it(self, offline, tmp_path):
        with pytest.raises(OSError, match=r"timemachine\.txt cannot .* by hand: .*cache"):
            TimeMachine(2, 4)

    def test_offline_the_command_takes_pythons_manual(self, offline, caplog):
        with caplog.at_level(logging.WARNING):
            text, source = english_text()
        assert len(text) > 300_000
        assert "Python" in source
        assert "instead" in caplog.text

    def test_a_download_is_checked_and_kept(self, offline, tmp_path, monkeypatch, caplog):
        import hashlib

        (tmp_path / "mirror").mkdir()
        (tmp_path / "mirror" / "timemachine.txt").write_text(TEXT)
        monkeypatch.setattr("d2lfast.data.files.DATA_URL", (tmp_path / "mirror").as_uri() + "/")
        with pytest.raises(OSError, match="not the published file"):
            TimeMachine(2, 4)
        monkeypatch.setitem(SHA1, "timemachine.txt", hashlib.sha1(TEXT.encode()).hexdigest())
        TimeMachine(2, 4)
        kept = tmp_path / "cache/d2lfast/timemachine/timemachine.txt"
        kept.write_text(TEXT[:-9])
        with caplog.at_level(logging.WARNING):
            TimeMachine(2, 4)
        assert kept.read_text() == TEXT
        assert "damaged and is downloaded again" in caplog.text

    @pytest.mark.skipif(not HAVE, reason="D2LFAST_DATA is not set")
    def test_the_books_numbers(self):
        data = TimeMachine(1024, 32)
        assert len(data.corpus) == 173_428
        assert len(data.vocab) == 28
        assert data.corpus[:10].tolist() == [21, 9, 6, 0, 21, 10, 14, 6, 0, 14]
        assert len(data.train_dataloader()) == 10
        assert len(data.val_dataloader()) == 5


class TestPairs:
    @pytest.fixture
    def data(self, tmp_path, offline):
        (tmp_path / "fra.txt").write_text(PAIRS)
        return MTFraEng(2, num_steps=5, num_train=3, num_val=2, root=tmp_path)

    def test_arrays(self, data):
        src, tgt, lengths, label = data.arrays
        assert src.shape == tgt.shape == label.shape == (5, 5)
        assert data.src_vocab.to_tokens(src[4]) == ["i", "won", "!", "<eos>", "<pad>"]
        assert lengths.tolist() == [3, 3, 3, 4, 4]
        assert torch.equal(tgt[:, 1:], label[:, :-1])
        assert set(data.tgt_vocab.to_tokens(tgt[:, 0])) == {"<bos>"}
        assert data.tgt_vocab.to_tokens(label[2])[1:3] == ["!", "<eos>"]

    def test_batches_have_exactly_the_pairs_asked_for(self, data):
        assert [len(batch) for batch in data.train_dataloader()] == [4, 4]
        assert sum(len(batch[0]) for batch in data.train_dataloader()) == 3
        assert sum(len(batch[0]) for batch in data.val_dataloader()) == 2

    def test_build_uses_the_same_numbers(self, data):
        arrays = data.build(["I won!"], ["Je l'ai emporté !"])
        assert torch.equal(arrays[0][0], data.arrays[0][4])
        assert torch.equal(arrays[3][0], data.arrays[3][4])

    def test_zip(self, tmp_path, offline, data):
        (tmp_path / "zip").mkdir()
        with zipfile.ZipFile(tmp_path / "zip" / "fra-eng.zip", "w") as archive:
            archive.writestr("fra-eng/_about.txt", "about")
            archive.writestr("fra-eng/fra.txt", PAIRS)
        again = MTFraEng(2, 5, 3, 2, root=tmp_path / "zip")
        assert all(torch.equal(a, b) for a, b in zip(again.arrays, data.arrays))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("fra-eng.zip", b"PK\3\4 cut", "is damaged"),
            ("fra.txt", b"", "is empty"),
            ("fra.txt", b"\xff\xff", "not a text"),
            ("fra.txt", b"no tab here\n", "no pair of sentences"),
        ],
    )
    def test_bad_files(self, tmp_path, offline, name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            MTFraEng(2, root=tmp_path)

    @pytest.mark.skipif(not HAVE, reason="D2LFAST_DATA is not set")
    def test_the_books_vocabularies(self):
        data = MTFraEng(128)
        assert (len(data.src_vocab), len(data.tgt_vocab)) == (194, 214)


def test_downloads_go_on_where_they_broke_off(tmp_path, monkeypatch):
    import hashlib
    import http.server
    import threading

    from d2lfast.data.download import Remote, fetch

    content = bytes(range(256)) * 40
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
            asked.append(begin)
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            # The first answer breaks off in the middle.
            self.wfile.write(content[begin:4000] if len(asked) == 1 else content[begin:])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/file"
    remote = Remote(hashlib.md5(content).hexdigest(), len(content))
    try:
        with pytest.raises(OSError, match="file cannot be downloaded"):
            fetch([url], tmp_path / "file", remote)
        assert (tmp_path / "file.part").stat().st_size == 4000
        fetch([url], tmp_path / "file", remote)
        assert asked == [0, 4000]
        assert (tmp_path / "file").read_bytes() == content
        # A part of something else does not spoil it.
        (tmp_path / "file").unlink()
        (tmp_path / "file.part").write_bytes(b"x" * 100)
        fetch([url], tmp_path / "file", remote)
        assert (tmp_path / "file").read_bytes() == content
        assert asked[2:] == [100, 0]
    finally:
        server.shutdown()
        server.server_close()


def test_progress_is_shown_in_a_terminal(capsys, monkeypatch):
    from d2lfast.data import download

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    download._show("file", 1_500_000, 3_000_000)
    assert "file: 1.5 of 3.0 MB" in capsys.readouterr().err
