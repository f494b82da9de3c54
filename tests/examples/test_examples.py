import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.name for path in FOLDER.glob("c*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_runs_on_small_data(name, monkeypatch, capsys, tmp_path):
    torch.set_num_threads(1)
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "French.txt").write_text("Émile\nBélanger\nRoy\n" * 4, encoding="utf-8")
    (tmp_path / "names" / "Greek.txt").write_text("Pappas\nXenos\n" * 4)
    monkeypatch.setattr(sys, "argv", [name, "--small"])
    monkeypatch.setenv("D2LFAST_DATA", str(tmp_path))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    for module in ("support",):
        monkeypatch.delitem(sys.modules, module, raising=False)
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    sys.modules.pop("support", None)
    assert capsys.readouterr().out.strip()
    assert os.listdir(tmp_path) == ["names"]


def test_every_chapter_has_one():
    assert {int(name[2:4]) for name in SCRIPTS if name.startswith("ch")} == {3, 4, 5, 6, 7, 8, 9, 10, 13}
