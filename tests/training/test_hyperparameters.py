import pytest
import torch
from torch import nn

from d2lfast.training import SGD, HyperParameters, ProgressBoard, add_to_class


class Base(HyperParameters):
    def __init__(self, a, *rest, b=2, _hidden=3, **more):
        unrelated = a  # noqa: F841
        self.save_hyperparameters(ignore=["b"])


class Child(Base):
    def __init__(self, c):
        super().__init__(1, 5, d=4)
        self.save_hyperparameters()


def test_arguments_alone_are_kept():
    base = Base(1, 7, x=5)
    assert base.hparams == {"a": 1, "rest": (7,), "more": {"x": 5}}
    assert base.a == 1
    assert not hasattr(base, "b")
    assert not hasattr(base, "unrelated")


def test_a_chain_adds_up():
    assert Child(9).hparams == {"a": 1, "rest": (5,), "more": {"d": 4}, "c": 9}


def test_add_to_class():
    class A:
        pass

    a = A()

    @add_to_class(A)
    def double(self, x):
        return 2 * x

    assert a.double(4) == 8
    assert double(None, 1) == 2


def test_sgd():
    p, frozen = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.ones(1))
    optimizer = SGD(iter([p, frozen]), lr=0.5)
    for expected in ([0.0, 0.0], [-1.0, -2.0]):
        (p * torch.tensor([2.0, 4.0])).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert p.tolist() == expected
        assert p.grad.tolist() == [0, 0]
    assert frozen.grad is None


class TestBoard:
    def test_means_of_every_n(self):
        board = ProgressBoard("x", display=False)
        for x in range(7):
            board.draw(x, torch.tensor(float(x) ** 2), "square", every_n=3)
            board.draw(x, x, "line")
        assert [tuple(point) for point in board.data["square"]] == [(1, 5 / 3), (4, 50 / 3)]
        assert len(board.data["line"]) == 7
        assert len(board.raw_points["square"]) == 1

    def test_zero_means_every_one(self):
        board = ProgressBoard()
        board.draw(1, 2, "a", every_n=0)
        assert board.data["a"] == [(1, 2)]

    def test_picture(self, tmp_path):
        board = ProgressBoard("epoch", "loss", xlim=(0, 1), ylim=(0.1, 2), yscale="log")
        for label in "abcdef":
            board.draw(0.5, 1, label)
        board.save(tmp_path / "new" / "board.png")
        assert (tmp_path / "new" / "board.png").read_bytes().startswith(b"\x89PNG")
        axes = board.figure().axes[0]
        assert axes.get_yscale() == "log"
        assert len(axes.lines) == 6

    def test_without_matplotlib_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'd2lfast\[plot\]'"):
            ProgressBoard().figure()


class TestNotebook:
    @pytest.fixture
    def shown(self, monkeypatch):
        import sys
        import types

        shown = []
        shell = types.SimpleNamespace(config={"IPKernelApp": {}})
        display = types.SimpleNamespace(
            display=shown.append, clear_output=lambda wait: shown.append("cleared" if wait else "blank")
        )
        ipython = types.SimpleNamespace(get_ipython=lambda: shell, display=display)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        monkeypatch.setattr("d2lfast.training.board._REDRAW_SECONDS", 0)
        return shown

    def test_the_board_follows_the_points(self, shown):
        board = ProgressBoard("epoch")
        for x in range(3):
            board.draw(x, x, "loss")
        assert shown[1::2] == ["cleared"] * 3
        assert [len(each.axes[0].lines[0].get_xdata()) for each in shown[::2]] == [1, 2, 3]

    def test_unless_it_is_not_to(self, shown):
        board = ProgressBoard(display=False)
        board.draw(1, 1, "loss")
        board.show()
        assert shown == []

    def test_the_old_animator_too(self, shown):
        from d2lfast import book as d2l

        animator = d2l.Animator("epoch")
        animator.add(1, [2, 3])
        assert shown[1] == "cleared"
