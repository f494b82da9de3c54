"""The benchmarks measure what they say and refuse to measure what is wrong."""

import csv
import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from d2lfast.bench import registry
from d2lfast.bench.case import Layout, Pass, make_sample
from d2lfast.bench.cases_batch_norm import batch_norm_case
from d2lfast.bench.cases_book import convolutions
from d2lfast.bench.cases_conv2d import conv2d_case
from d2lfast.bench.cases_pool2d import adaptive_case, pool2d_case
from d2lfast.bench.cases_recurrent import cell_case
from d2lfast.bench.gate import check
from d2lfast.bench.roofline import Roofline
from d2lfast.bench.runner import run_case
from d2lfast.bench.timing import interleave
from d2lfast.models.registry import NETWORKS

ROOFLINE = Roofline(peak=1e11, bandwidth=1e10)

TINY = [
    conv2d_case("tiny", (2, 4, 6, 5), 6, 3, padding=1, groups=2, bias=True),
    conv2d_case("tiny-relu", (2, 3, 6, 5), 4, 3, activation="relu"),
    conv2d_case("tiny-first", (2, 3, 6, 5), 4, 3, stride=2, input_grad=False, activation="sigmoid"),
    pool2d_case("tiny-max", "max", (2, 3, 7, 6), 3, 2, 1),
    pool2d_case("tiny-avg", "avg", (2, 3, 7, 6), 3, 1, 1),
    adaptive_case("tiny-avg-adaptive", "avg", (2, 3, 7, 5), 3),
    adaptive_case("tiny-max-adaptive", "max", (2, 3, 7, 5), 3),
    batch_norm_case((3, 4, 5, 6), True, "relu", residual=True),
    batch_norm_case((3, 4, 5, 6), False, "tanh"),
    batch_norm_case((6, 5), True),
    cell_case("rnn", 3, 4, 5),
    cell_case("gru", 3, 4, 5),
    cell_case("lstm", 3, 4, 5),
]


def by_name(name):
    (case,) = (case for case in registry.cases() if case.name == name)
    return case


def wrong(case, spoil):
    """The case with an implementation of ours that is native's, spoilt."""

    def ours(parameters, buffers):
        right = case.native(parameters, buffers)
        return lambda *inputs: spoil(right, *inputs)

    return dataclasses.replace(case, ours=ours)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.001


SPOILT = {
    "value": lambda f, x: f(x) * 1.001,
    "one element": lambda f, x: f(x).index_add(0, torch.tensor([0]), torch.full((1, *f(x).shape[1:]), 0.01)),
    "NaN": lambda f, x: f(x) * torch.where(x.sum() > -1e9, torch.nan, 1.0),
    "shape": lambda f, x: f(x)[..., :-1],
    "dtype": lambda f, x: f(x).double(),
    "gradient": lambda f, x: WrongGradient.apply(f(x)),
    "no gradient": lambda f, x: f(x).detach(),
    "without autograd": lambda f, x: f(x) if torch.is_grad_enabled() else f(x) + 1,
    "channels_last": lambda f, x: f(x) if x.is_contiguous() else f(x) + 1,
    "raises": lambda f, x: f(x, x, x, x),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=list(SPOILT))
def test_gate_refuses_a_wrong_implementation(spoil):
    outcome = run_case(wrong(TINY[0], spoil), seconds=0, roofline=ROOFLINE)
    assert outcome.failures
    assert outcome.rows == []


def test_gate_refuses_wrong_buffers():
    case = batch_norm_case((4, 3, 5, 5), True)

    def ours(parameters, buffers):
        return case.native(parameters, [buffer.clone() for buffer in buffers])

    problems = check(dataclasses.replace(case, ours=ours), torch.float32, [Layout.NCHW])
    assert [problem.split(" is off")[0] for problem in problems] == ["NCHW: buffer 0", "NCHW: buffer 1"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_gate_passes_a_right_implementation(case, dtype):
    assert check(case, dtype) == []


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_rows_of_a_case(case):
    rows = run_case(case, seconds=0, roofline=ROOFLINE).rows
    assert [(row.what, row.layout) for row in rows] == [
        (what, layout if len(case.layouts) > 1 else "-") for what in Pass for layout in case.layouts
    ]
    for row in rows:
        same = row.native_channels_last_ms if row.layout == "channels_last" else row.native_nchw_ms
        native = [row.native_nchw_ms, row.native_channels_last_ms or row.native_nchw_ms]
        assert row.speedup_same_layout == pytest.approx(same / row.ours_ms)
        assert row.speedup_best_native == pytest.approx(min(native) / row.ours_ms)
        assert row.share_of_floor == pytest.approx(row.floor_ms / row.ours_ms)


# Counted by hand: see the comments.
@pytest.mark.parametrize(
    ("name", "forward_flops", "both_flops", "forward_values", "both_values"),
    [
        # 2 * 256 * 6 * 28 * 28 outputs * 25 taps; backward: weights only. Values: x 200704, w 150, b 6,
        # y 1204224; backward: dy, x, dw, db.
        ("conv2d/lenet-1", 60211200, 120422400, 1405084, 2810168),
        # With the input's gradient also w and dx.
        ("conv2d/lenet-1-inner", 60211200, 180633600, 1405084, 3011022),
        # 2 * 16 * 128 * 56 * 56 * (128 / 32) * 9.
        ("conv2d/g32-128", 462422016, 1387266048, 12849664, 32126464),
        # 14 x 14 outputs of 28 x 28 at stride 2: 2 * 16 * 256 * 14 * 14 * 8 * 9.
        ("conv2d/g32-256-stride-2", 115605504, 346816512, 4032512, 11294720),
        # 3 comparisons for each of 64 * 64 * 28 * 28 outputs; backward adds each once.
        ("pool2d/max-2-2-0", 9633792, 12845056, 16056320, 32112640),
        # 28 -> 7 windows of 8 in each direction: every input once.
        ("pool2d/adaptive-avg-7-block", 12845056, 25890816, 13045760, 26091520),
        # 13 -> 6: windows of 3, 3, 3, 3, 3, 3 = 18 taps in each direction, 16 * 256 planes.
        ("pool2d/adaptive-avg-6-overlapping", 1327104, 2801664, 839680, 1679360),
        # 256 * 120 values, 6 forward, 8 backward; weight, bias, their gradients, statistics.
        ("batch_norm/train-256x120", 184320, 430080, 61920, 154560),
        # 2 * 32 * 96 * (28 + 32); x 896, h 1024, parameters 5952, h' 1024; backward reads and writes.
        ("gru_cell/32-28-32", 368640, 1105920, 8896, 34880),
        # 2 * 20 * 650 * 1300.
        ("rnn_cell/20-650-650", 33800000, 101400000, 885300, 2655900),
    ],
)
def test_work_by_hand(name, forward_flops, both_flops, forward_values, both_values):
    case = by_name(name)
    assert (case.forward.flops, case.both.flops) == (forward_flops, both_flops)
    assert (case.forward.values, case.both.values) == (forward_values, both_values)


def test_bytes_and_floor():
    work = by_name("pool2d/max-2-2-0").both
    # Besides the values one byte for each output is written and read: the position of its maximum.
    assert work.bytes(torch.float32) == 4 * 32112640 + 2 * 3211264
    assert work.bytes(torch.bfloat16) == 2 * 32112640 + 2 * 3211264
    assert ROOFLINE.floor(work, torch.float32) == pytest.approx(work.bytes(torch.float32) / 1e10)
    dense = by_name("conv2d/3x3-64").forward
    assert ROOFLINE.floor(dense, torch.float32) == pytest.approx(dense.flops / 1e11)


def test_registry_is_sound():
    cases = registry.cases()
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert 0 < case.forward.flops < case.both.flops
        assert 0 < case.forward.values < case.both.values


def test_the_book_suite_has_every_convolution_of_the_networks_once():
    cases = registry.cases(suite=registry.Suite.BOOK)
    assert len({case.name for case in cases}) == len(cases)
    # Of LeNet: two layers, at the book's batch.
    lenet = [case for case in cases if "/lenet/" in case.name]
    assert [case.inputs for case in lenet] == [((128, 1, 28, 28),), ((128, 6, 14, 14),)]
    assert [case.parameters for case in lenet] == [((6, 1, 5, 5), (6,)), ((16, 6, 5, 5), (16,))]
    assert [case.input_grad for case in lenet] == [False, True]
    assert lenet[0].convolution == {"stride": 1, "padding": 2, "groups": 1}
    # A ResNet's blocks repeat themselves.
    network = NETWORKS["resnet18"]
    model = network.build(layers=torch.nn)
    found = convolutions(model, torch.zeros(1, *network.shape))
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(each.weight for each in found) == sorted(tuple(layer.weight.shape) for layer in layers)
    measured = {(case.inputs[0][1:], case.parameters[0], case.convolution["stride"]) for case in cases}
    assert {(each.shape, each.weight, each.stride) for each in found} <= measured


def test_command_lists_a_suite():
    done = command("--suite", "book", "--filter", "/nin/", "--list")
    assert done.returncode == 0, done.stderr
    assert "conv2d/book/nin/" in done.stdout
    assert "lenet" not in done.stdout


def test_layouts_hold_the_same_numbers():
    case = TINY[0]
    plain, last = (make_sample(case, torch.float32, layout) for layout in Layout)
    for a, b in zip(plain.wanted, last.wanted):
        assert torch.equal(a, b)
    assert last.inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert last.parameters[0].is_contiguous(memory_format=torch.channels_last)


def test_interleaving_takes_turns():
    log = []
    timings = interleave({name: (lambda name=name: log.append(name)) for name in "abc"}, seconds=0)
    assert set(timings) == set("abc")
    for timing in timings.values():
        assert timing.samples >= 5
        assert 0 < timing.p20 <= timing.median <= timing.p80
    rounds = "".join(log)[-15 * timings["a"].repeats :]
    assert set(rounds) == set("abc")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "d2lfast.bench", "kernels", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_command_writes_json_and_csv(tmp_path):
    results, rows_file = tmp_path / "results.json", tmp_path / "rows.csv"
    done = command(
        "--filter", "^pool2d/avg-lenet-2$|^rnn_cell/1-", "--seconds", "0.01", "--threads", "1",
        "--keep-memory", "--json", str(results), "--csv", str(rows_file),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "avg-lenet-2" in done.stdout
    document = json.loads(results.read_text())
    machine = document["machine"]
    assert {"cpu", "cores", "isa", "threads", "torch", "d2lfast", "date", "malloc"} <= set(machine)
    assert machine["threads"] == 1
    assert machine["malloc"].startswith("keeps its blocks")
    assert machine["peak_gflops"] > 0
    assert machine["copy_gbytes"] > 0
    assert document["failures"] == {}
    assert [row["case"] for row in document["rows"]] == ["pool2d/avg-lenet-2"] * 4 + ["rnn_cell/1-28-32"] * 2
    text = rows_file.read_text().splitlines()
    assert text[0].startswith("# cpu: ")
    table = list(csv.DictReader(line for line in text if not line.startswith("#")))
    assert [row["case"] for row in table] == [row["case"] for row in document["rows"]]
    assert float(table[0]["ours_ms"]) == pytest.approx(document["rows"][0]["ours_ms"], rel=1e-4)


def test_command_prints_failures_instead_of_speed(monkeypatch, tmp_path):
    from typer.testing import CliRunner

    from d2lfast.bench import app, commands

    spoilt = wrong(TINY[0], SPOILT["value"])
    monkeypatch.setattr(registry, "cases", lambda pattern, suite: [spoilt, TINY[3]])
    monkeypatch.setattr(commands, "measure_roofline", lambda dtype: ROOFLINE)
    done = CliRunner().invoke(app, ["kernels", "--seconds", "0", "--json", str(tmp_path / "out.json")])
    assert done.exit_code == 1, done.output
    assert "GATE RED conv2d/tiny: NCHW: output 0" in done.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert set(document["failures"]) == {"conv2d/tiny"}
    assert {row["case"] for row in document["rows"]} == {"pool2d/tiny-max"}


@pytest.mark.parametrize(
    "arguments", [["--filter", "("], ["--filter", "no such case"], ["--csv", "no/such/dir/x"]]
)
def test_command_refuses_bad_options(arguments):
    from typer.testing import CliRunner

    from d2lfast.bench import app

    assert CliRunner().invoke(app, ["kernels", *arguments]).exit_code == 2


def test_list_names_every_case():
    done = command("--list")
    assert done.returncode == 0, done.stderr
    assert all(case.name in done.stdout for case in registry.cases())
