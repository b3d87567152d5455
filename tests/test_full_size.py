"""`make full-size`: steps are recorded and not repeated, checks find differences, and it runs at the tiny size."""

import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.full_size.__main__ import main
from benchmarks.full_size.agreement import compare_sides
from benchmarks.full_size.material import save_arrays
from benchmarks.full_size.steps import Check, read_result, run_process
from benchmarks.full_size.table import result_table
from benchmarks.full_size.workspace import SAMPLE_VIDEOS, Workspace, check_inputs, claim_folder
from calce_jax.errors import UserError

STEP = """
from benchmarks.full_size.steps import Check, report_checks
report_checks([Check("answers", 3, 4), Check("tokens", 5)])
"""


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path, "tiny", None, tuple(SAMPLE_VIDEOS))


def test_a_step_leaves_its_time_memory_and_checks(tmp_path):
    result = run_process(tmp_path, "step", ["-c", STEP])
    assert result.checks == [Check("answers", 3, 4), Check("tokens", 5)]
    assert result.ok
    # Linux counts the peak of the process that starts another as the other's too; that of a tests' worker is some GB.
    own_peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert 0.005 < result.peak_gb < 1 + own_peak_gb
    assert read_result(tmp_path, "step") == result
    assert read_result(tmp_path, "another") is None


def test_a_step_that_fails_says_how_it_ended(tmp_path):
    result = run_process(tmp_path, "step", ["-c", "print('before'); raise SystemExit('no room')"])
    assert not result.ok
    assert result.error == "exit status 1\nbefore\nno room"
    assert read_result(tmp_path, "step") == result


def test_a_folder_of_other_options_is_refused(workspace):
    claim_folder(workspace)
    claim_folder(workspace)
    with pytest.raises(UserError, match=r"made with --size=tiny .*, not with --size=tiny --frames=9 .*; give another"):
        claim_folder(replace(workspace, frames=9))


def test_what_the_steps_need_is_checked_before_the_first(workspace, tmp_path, monkeypatch):
    check_inputs(workspace)
    with pytest.raises(UserError, match=r"no\.mp4: no such video; check --videos"):
        check_inputs(replace(workspace, source_videos=(Path("no.mp4"), Path("no.mp4"))))
    with pytest.raises(UserError, match="no such tokenizer; give a folder with t5/ and bert/ as --tokenizers"):
        check_inputs(replace(workspace, tokenizers=tmp_path))
    for name in ("t5", "bert"):
        (tmp_path / f"tokenizers/{name}").mkdir(parents=True)
    full = replace(workspace, size="full", tokenizers=tmp_path / "tokenizers")
    monkeypatch.setattr("benchmarks.full_size.workspace.free_bytes", lambda _: 60 * 10**9)
    check_inputs(full)
    monkeypatch.setattr("benchmarks.full_size.workspace.free_bytes", lambda _: 59 * 10**9)
    with pytest.raises(UserError, match=r"59.0 GB are free, and a run needs 60.0 GB; give an --out on another disk"):
        check_inputs(full)
    (tmp_path / "results").mkdir()
    check_inputs(full)  # a run that goes on has written its files


def test_a_mistake_in_an_option_does_not_bind_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["full_size", "--size=tiny", "--videos", "a.mp4", "b.mp4", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match=r"a\.mp4: no such video"):
        main()
    assert not (tmp_path / "workspace.json").exists()


def test_fewer_frames_than_clusters_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["full_size", "--size=tiny", "--frames=9", f"--out={tmp_path}"])
    with pytest.raises(SystemExit, match=r"clusters: must be <= config.data.frames=9"):
        main()


def test_a_step_that_does_not_exist_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["full_size", f"--out={tmp_path}", "--until=trian_stage1"])
    with pytest.raises(SystemExit):
        main()
    assert "--until=trian_stage1: there is no such step; choose of publish, material" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_step_ends_with_the_program_that_started_it(tmp_path):
    code = f"""
import signal
from pathlib import Path
from benchmarks.full_size.steps import run_process
signal.signal(signal.SIGTERM, signal.default_int_handler)
run_process(Path({str(tmp_path)!r}), "step", ["-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"])
"""
    log = tmp_path / "logs/step.log"
    starter = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
    while not (log.is_file() and log.read_text()):
        assert starter.poll() is None
        time.sleep(0.05)
    starter.terminate()
    assert starter.wait(60) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def sides(workspace, changes):
    """Write arrays that agree, except for `changes`: {(file, array): added}."""
    rng = np.random.default_rng(0)
    shapes = {
        "vision": {"tokens": (4, 5, 6), "queries": (4, 3, 6), "embeddings": (9, 8)},
        "gradients": {"states": (9, 8), "loss": (), "gradient:q.lora_A.default.weight": (2, 8)},
        "beams": {"tokens": (5, 7), "log_probability": (5,)},
    }
    for part, arrays in shapes.items():
        exact = {name: rng.normal(size=shape) for name, shape in arrays.items()}
        for dtype, error in (("float32", 0.0), ("bfloat16", 0.01)):
            for side in ("ours", "theirs"):
                file = f"{side}_{part}_{dtype}"
                found = {name: array + error + changes.get((file, name), 0.0) for name, array in exact.items()}
                save_arrays(workspace, file, found)


def test_sides_that_agree_pass(workspace):
    sides(workspace, {})
    checks = compare_sides(workspace)
    assert all(check.ok for check in checks)
    assert sum(check.limit is not None for check in checks) == 14


@pytest.mark.parametrize(
    ("file", "array", "added"),
    [
        ("ours_vision_float32", "tokens", 1e-3),
        ("ours_vision_float32", "queries", 1e-3),
        ("theirs_vision_float32", "embeddings", 1e-3),
        ("ours_gradients_float32", "states", 1e-3),
        ("ours_gradients_float32", "loss", 1e-3),
        ("ours_gradients_float32", "gradient:q.lora_A.default.weight", 1e-3),
        ("ours_beams_float32", "tokens", 1),
        ("ours_beams_float32", "log_probability", 0.01),
        ("ours_vision_bfloat16", "tokens", 0.01),
        ("ours_gradients_bfloat16", "states", 0.01),
        ("ours_gradients_bfloat16", "gradient:q.lora_A.default.weight", 0.01),
    ],
)
def test_a_side_that_differs_fails(workspace, file, array, added):
    sides(workspace, {(file, array): added})
    assert any(not check.ok for check in compare_sides(workspace))


def test_at_full_size_the_median_adapter_has_a_limit_too(workspace):
    sides(workspace, {})
    full = compare_sides(replace(workspace, size="full"))
    assert sum(check.limit is not None for check in full) == 14


def test_the_table_shows_what_is_not_ok(workspace, tmp_path):
    good, bad = (
        run_process(tmp_path, name, ["-c", STEP.replace("4)", limit)])
        for name, limit in zip("ab", ("4)", "2)"), strict=True)
    )
    table = result_table(workspace, [good, bad])
    assert "| answers | 3 | 4 | ok |" in table
    assert "| answers | 3 | 2 | NOT OK |" in table
    assert "| tokens | 5 |  |  |" in table


@pytest.mark.release
def test_all_of_it_runs_at_the_tiny_size(tmp_path):
    command = [sys.executable, "-m", "benchmarks.full_size", "--size=tiny", f"--out={tmp_path}"]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
    again = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True, check=False)
    assert "..." not in again.stdout  # every step has passed already


@pytest.mark.release
def test_products_of_torch_in_bfloat16_are_rounded_once():
    torch = pytest.importorskip("torch")
    from benchmarks.full_size.theirs import Float32Products  # noqa: PLC0415

    x, weight = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((3, 40), (50, 40)))
    with Float32Products():
        y = torch.nn.functional.linear(x, weight)
        y.sum().backward()
    expected = x.float() @ weight.float().T
    assert torch.equal(y, expected.bfloat16())
    assert torch.equal(x.grad, weight.float().sum(dim=0).expand(3, -1).bfloat16())
