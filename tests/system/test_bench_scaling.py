"""The scaling tables name every size and refuse what is wrong."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from d2lfast.bench import app, scaling, scaling_commands
from d2lfast.bench.cases_conv2d import conv2d_case
from d2lfast.bench.cases_recurrent import layer_case
from d2lfast.bench.roofline import Roofline

TINY = scaling.Sweep(
    "conv2d/groups",
    "tiny",
    tuple((g, conv2d_case(f"tiny-{g}", (2, 4, 6, 5), 4, 3, padding=1, groups=g)) for g in (1, 2, 4)),
)


def test_every_sweep_changes_one_size():
    found = scaling.sweeps()
    assert len({sweep.name for sweep in found}) == len(found)
    assert {name.partition("/")[0] for name in (sweep.name for sweep in found)} == {
        "conv2d", "gru_layer", "lstm_layer",
    }  # fmt: skip
    for sweep in found:
        values = [value for value, _ in sweep.points]
        assert values == sorted(set(values))
    groups = next(sweep for sweep in found if sweep.name == "conv2d/groups")
    flops = [case.forward.flops for _, case in groups.points]
    # g groups cost 1/g of the products.
    assert flops == [flops[0] // value for value, _ in groups.points]


def test_points_of_a_sweep():
    points = scaling.run_sweep(TINY, torch.float32, seconds=0)
    assert [point.value for point in points] == [1, 2, 4]
    for point in points:
        assert min(point.native_forward, point.ours_forward, point.native_both, point.ours_both) > 0
    lines = scaling.sweep_lines(TINY, points)
    assert len(lines) == 2 + 2 + 3 + 1
    assert len({line.count("|") for line in lines[2:-1]}) == 1


def test_threads_are_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        points = scaling.run_threads([layer_case("gru", 2, 3, 4, 5)], torch.float32, seconds=0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [point.case for point in points] == ["gru_layer/2-3-4-5"]
    assert "gru_layer/2-3-4-5" in scaling.thread_lines(points, 2)[-2]


def test_a_wrong_case_is_not_timed():
    _, case = TINY.points[0]

    def ours(parameters, buffers):
        right = case.native(parameters, buffers)
        return lambda x: right(x) * 1.001

    wrong = dataclasses.replace(TINY, points=((1, dataclasses.replace(case, ours=ours)),))
    with pytest.raises(RuntimeError, match="wrong and is not timed"):
        scaling.run_sweep(wrong, torch.float32, seconds=0)


def test_command(monkeypatch, tmp_path):
    monkeypatch.setattr(scaling_commands, "measure_roofline", lambda dtype: Roofline(1e11, 1e10))
    monkeypatch.setattr(scaling_commands, "sweeps", lambda: (TINY,))
    target = tmp_path / "table.md"
    options = ["scaling", "--filter", "groups", "--seconds", "0", "--output", str(target)]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "conv2d/groups: tiny" in target.read_text()
    assert CliRunner().invoke(app, ["scaling", "--filter", "("]).exit_code == 2
    assert CliRunner().invoke(app, ["scaling", "--filter", "nothing"]).exit_code == 2
