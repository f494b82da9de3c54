"""The documents name what there is."""

import pathlib
import re

import pytest

from d2lfast.selftest import registered_operators

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "csrc" / "README.md"]


def test_every_operator_has_a_row():
    text = (ROOT / "docs" / "operators.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)) == registered_operators()


def test_every_switch_of_the_code_has_a_row():
    text = (ROOT / "docs" / "environment.md").read_text()
    code = [ROOT / "setup.py", *(ROOT / "d2lfast").rglob("*.py"), *(ROOT / "csrc").rglob("*.cpp")]
    names = {
        name
        for path in code
        for name in re.findall(
            r"(?:environ(?:\.get)?[\[(]|getenv\(|flag\()\s*\"([A-Z][A-Z0-9_]+)\"", path.read_text()
        )
    }
    ours = {name for name in names if name.startswith("D2LFAST_") or name.startswith("FORCE_")}
    assert ours
    assert {name for name in ours if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name}: {target}"
