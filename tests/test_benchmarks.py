"""The benchmarks' own arithmetic: turns, medians, and that both sides compute the same."""

import json

import numpy as np
import pytest

from benchmarks import paired
from benchmarks.__main__ import table
from benchmarks.material import noise_images
from benchmarks.metrics import flatten_scores, random_cases, scores_by_loop
from benchmarks.paired import BenchmarkSettings, check_close, compare, compile_program, program_bytes, report
from calce_jax.moments.metrics import PROTOCOLS


@pytest.fixture
def setting(tmp_path):
    return BenchmarkSettings("cpu", "float32", threads=1, rounds=3, out=tmp_path, peak=2.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when a side says so."""

    class Clock:
        now = 0.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(paired.time, "perf_counter", clock)
    return clock


def sides(clock, ours, theirs):
    """Return two sides that take so many seconds, turn by turn, and the order in which they are asked."""
    order = []

    def side(name, seconds):
        turns = iter(seconds)

        def run():
            order.append(name)
            clock.now += next(turns)
            return name

        return run

    return side("ours", ours), side("theirs", theirs), order


def test_turns_and_medians(setting, clock, capsys):
    # Two runs of each side warm up and do not count.
    ours, theirs, order = sides(clock, [9, 9, 1, 2, 4], [99, 99, 3, 10, 4])
    row = compare(setting, "work", ours, theirs, other="torch", agreement=lambda a, b: f"{a} {b}", tflop=1.0, frames=10)
    assert order == [*["ours", "theirs"] * 2, "theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert (row.ours, row.theirs) == (2, 4)
    assert (row.lowest, row.ratio, row.highest) == (1, 3, 5)
    assert row.agreement == "ours theirs"
    assert row.notes == {"TFLOP/s": 0.5, "their TFLOP/s": 0.25, "share of peak": 0.25} | {
        "frames a second": 5,
        "their frames a second": 2.5,
    }
    assert "work: 2000.0 ms, torch 4000.0 ms: 3.00x (1.00 to 5.00)" in capsys.readouterr().out


def test_what_a_program_holds(setting, clock):
    program, _ = compile_program(lambda x: (x @ x, x.sum()), np.ones((256, 256), np.float32))
    assert 2 * 2**18 + 4 <= program_bytes(program) < 4 * 2**18
    ours, theirs, _ = sides(clock, [1] * 5, [2] * 5)
    row = compare(setting, "work", ours, theirs, other="torch", agreement=lambda a, b: "same", program=program)
    assert row.notes == {"GiB": program_bytes(program) / 2**30}


def test_results_are_written_down_and_tabled(setting, clock):
    ours, theirs, _ = sides(clock, [1] * 5, [2] * 5)
    report(setting, "subject", [compare(setting, "work", ours, theirs, other="torch", agreement=lambda a, b: "same")])
    written = json.loads((setting.out / "subject.json").read_text())
    assert written["packages"]["jax"]
    assert written["rows"][0]["ratio"] == 2
    row = table([setting.out / "subject.json"]).splitlines()[-1]
    assert row.startswith("| work | 1000.0 ms | torch: 2000.0 ms | 2.00 |")


def test_different_results_are_no_comparison():
    torch = pytest.importorskip("torch")
    theirs = torch.tensor([1.0, 2.0])
    assert check_close(np.array([1.0, 2.002]), theirs, max_difference=1e-2) == "results differ by 1e-03"
    for wrong in (2.2, np.nan):
        with pytest.raises(ValueError, match="not the same computation"):
            check_close(np.array([1.0, wrong]), theirs, max_difference=1e-2)


def test_the_loop_over_queries_gives_the_same_scores():
    cases = random_cases(60)
    # Ours are rounded to two decimals, as published.
    np.testing.assert_allclose(scores_by_loop(cases), flatten_scores(PROTOCOLS["official"](cases)), atol=0.0051)


def test_pictures_drift():
    first, second = noise_images(2, 16, 32)
    assert first.shape == (16, 32, 3)
    np.testing.assert_array_equal(first[:, 16:], second[:, :16])
    assert first.std() > 20
