"""Result files: JSON and CSV, both with the machine they were measured on."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from d2lfast.bench.roofline import Roofline
from d2lfast.bench.runner import Outcome, Row


def header(machine: Mapping[str, str | int], roofline: Roofline) -> dict[str, str | int | float]:
    """The machine with its measured peak and bandwidth."""
    return {
        **machine,
        "peak_gflops": round(roofline.peak * 1e-9, 1),
        "copy_gbytes": round(roofline.bandwidth * 1e-9, 1),
    }


def write_json(
    path: Path,
    facts: Mapping[str, str | int | float],
    settings: Mapping[str, object],
    outcomes: Sequence[Outcome],
) -> None:
    """Write everything: machine, settings, rows, failures and notes."""
    document = {
        "machine": dict(facts),
        "settings": dict(settings),
        "rows": [asdict(row) for outcome in outcomes for row in outcome.rows],
        "failures": {outcome.case: outcome.failures for outcome in outcomes if outcome.failures},
        "notes": {outcome.case: outcome.notes for outcome in outcomes if outcome.notes},
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def write_csv(path: Path, facts: Mapping[str, str | int | float], outcomes: Sequence[Outcome]) -> None:
    """Write the rows of operators, below the machine as `# name: value` lines."""
    write_rows(path, facts, Row, [row for outcome in outcomes for row in outcome.rows])


def write_rows(
    path: Path, facts: Mapping[str, str | int | float], kind: type[Any], rows: Sequence[Any]
) -> None:
    """Write rows of the dataclass `kind`, below the machine as `# name: value` lines."""
    with path.open("w", newline="") as file:
        for name, value in facts.items():
            file.write(f"# {name}: {value}\n")
        writer = csv.DictWriter(file, [field.name for field in fields(kind)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = asdict(row)
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()})
