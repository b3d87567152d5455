"""The benchmark of a GPU, which no machine of the tests has: its sections, its weights, and a rehearsal on a CPU."""

import ast
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import paired
from benchmarks.generation import decoder_bytes
from benchmarks.gpu.sections import RowLog, Section, end_at, markdown_table, read_rows, run_sections
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.t5 import T5

ROOT = Path(__file__).parents[1]
# What a machine with a GPU may lack.
ABSENT = ("tensorflow", "tensorflow_datasets", "grain", "array_record", "clu", "orbax", "click", "av", "simplejpeg")
ABSENT += ("peft", "ml_collections", "tensorboardX", "beartype", "gradio", "HanTa")


@pytest.fixture
def settings(tmp_path):
    return BenchmarkSettings("cpu", "float32", threads=1, rounds=1, out=tmp_path, peak=0.0)


def measured(name, **notes):
    return ComparisonRow(name, 1.0, 2.0, 2.0, 1.5, 2.5, 3.0, "torch", "the same", notes=notes)


def section(name, seconds, rows):
    return Section(name, seconds, lambda: iter(rows()))


@pytest.mark.release
def test_a_failed_section_is_a_row_and_the_next_goes_on(settings, capsys):
    written = []

    def two_rows():
        yield measured("first")
        written.append(json.loads((settings.out / "gpu.json").read_text())["rows"])
        raise RuntimeError("no such\nkernel")

    def missing():
        raise ImportError("No module named 'simplejpeg'")
        yield

    log = RowLog(lambda: settings)
    sections = [Section("a", 1, two_rows), Section("b", 1, missing), section("c", 1, lambda: [measured("last")])]
    run_sections(sections, log, time.monotonic() + 60)
    # A killed run keeps its rows: each was written before the section went on.
    assert [row["name"] for row in written[0]] == ["first"]
    rows = read_rows(settings)
    assert [(row["section"], row["status"], row.get("reason", row.get("name"))) for row in rows] == [
        ("a", "measured", "first"),
        ("a", "failed", "RuntimeError: no such kernel"),
        ("b", "skipped", "No module named 'simplejpeg'"),
        ("c", "measured", "last"),
    ]
    assert "a: failed: RuntimeError: no such kernel" in capsys.readouterr().out


def test_rows_of_an_earlier_run_stay_until_they_are_measured_again(settings):
    sections = [section(name, 1, lambda name=name: [measured(f"first {name}")]) for name in "ab"]
    run_sections(sections, RowLog(lambda: settings), time.monotonic() + 60)
    again = [section("b", 1, lambda: [measured("second b")])]
    run_sections(again, RowLog(lambda: settings), time.monotonic() + 60)
    assert [row["name"] for row in read_rows(settings)] == ["first a", "second b"]
    other = dataclasses.replace(settings, dtype="bfloat16")
    run_sections(again, RowLog(lambda: other), time.monotonic() + 60)
    assert [row["name"] for row in read_rows(settings)] == ["second b"]


def test_bytes_that_decoding_reads():
    config = T5Config(width=8, heads=2, head_width=4, mlp_width=16, encoder_depth=1, decoder_depth=3, vocab=10)
    decoder = T5(config, rngs=nnx.Rngs(0)).decoder
    all_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(decoder)))
    once = 3 * 2 * 8 * 8 * 4  # keys and values of what the encoder returned, in three blocks
    assert decoder_bytes([decoder], 7) == 7 * (all_bytes - once) + once


@pytest.mark.slow
def test_a_section_that_takes_too_long_is_left(settings):
    def slow():
        try:
            time.sleep(300)
        except Exception:  # as a library that retries whatever happens
            time.sleep(300)
        yield measured("never")

    start = time.monotonic()
    log = RowLog(lambda: settings)
    run_sections([Section("slow", 0.1, slow), section("next", 599.9, lambda: [measured("next")])], log, start + 700)
    assert time.monotonic() - start < 200  # of two sleeps of 300, on a busy machine
    assert [row["status"] for row in log.rows] == ["failed", "measured"]
    assert log.rows[0]["reason"] == "took longer than its share, 0 s"


@pytest.mark.release
def test_what_a_section_leaves_is_shared(settings):
    now, limits = [0.0], []

    def rows(seconds):
        limits.append(round(signal.getitimer(signal.ITIMER_REAL)[0]))
        now[0] += seconds
        return [measured("row")]

    sections = [
        section(str(spent), share, lambda spent=spent: rows(spent)) for spent, share in ((10, 50), (60, 30), (99, 20))
    ]
    log = RowLog(lambda: settings)
    run_sections([*sections, section("late", 100, lambda: rows(0))], log, 200.0, clock=lambda: now[0])
    # 200 s for shares of 200; then 190 of 150, 130 of 120, 31 of 100.
    assert limits == [50, 38, 22, 31]
    now[0], log.rows[:] = 199.5, []
    run_sections(sections[:1], log, 200.0, clock=lambda: now[0])
    assert [(row["section"], row["status"], row["reason"]) for row in log.rows] == [
        ("10", "skipped", "0 s of the budget are left")
    ]


def test_the_process_ends_when_the_budget_is_spent(capsys):
    codes = []
    end_at(0.05, codes.append).join(5)
    assert codes == [124]
    assert "the budget is spent" in capsys.readouterr().err
    timer = end_at(0.2, codes.append)
    timer.cancel()
    timer.join(5)
    assert codes == [124]


@pytest.mark.slow
def test_without_a_card_the_run_ends_with_what_to_install(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", f"--out={tmp_path}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 1
    assert re.search(r"(jax|torch) finds no CUDA device.* --rehearse computes on a CPU$", run.stderr.strip())
    assert "Traceback" not in run.stderr


def test_the_table_has_shares_memory_and_what_failed():
    rows = [
        {"status": "measured"}
        | dataclasses.asdict(measured("work", **{"share of peak": 0.5, "GiB": 1.0, "their GiB": 2.0})),
        {"status": "failed", "section": "ViT", "reason": "no"},
    ]
    assert markdown_table(rows).splitlines()[2:] == [
        "| work | 1000.0 ms | 2000.0 ms | 2.00 (1.50 to 2.50) | 50% | 1.0, 2.0 | the same |",
        "| ViT | failed: no | | | | | |",
    ]


def test_memory_of_torch_on_a_gpu(settings, monkeypatch):
    """What runs on a GPU alone: torch is asked for its peak, of this work if the process holds other models."""
    torch = pytest.importorskip("torch")
    calls = []
    for name, value in {"synchronize": None, "reset_peak_memory_stats": None, "memory_allocated": 7 * 2**30}.items():
        monkeypatch.setattr(torch.cuda, name, lambda name=name, value=value: calls.append(name) or value)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 8 * 2**30)
    program, _ = paired.compile_program(lambda x: x, np.ones(1, np.float32))
    gpu = dataclasses.replace(settings, device="gpu", bandwidth=10.0)

    def row(**options):
        sides = {"ours": lambda: 1, "theirs": lambda: 2, "other": "torch", "agreement": lambda a, b: ""}
        return compare(gpu, "work", **sides, program=program, gigabytes=1.0, **options).notes

    assert row()["their GiB"] == 8
    assert row(their_bytes=3 * 2**30)["their GiB"] == 4  # 1 more than before, and 3 of its own
    notes = row()
    assert notes["share of bandwidth"] == pytest.approx(notes["GB/s"] / 10)
    assert {"synchronize", "reset_peak_memory_stats"} <= set(calls)


def top_level(node):
    """Yield the nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not isinstance(child, ast.FunctionDef) and not is_for_types:
            yield child
            yield from top_level(child)


def test_modules_need_nothing_but_the_frameworks():
    """Imports at the top of a module, and of those that it imports."""
    seen, todo = {}, ["benchmarks.gpu.__main__", "benchmarks.gpu"]
    while todo:
        name = todo.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.is_file():
            continue
        top = list(top_level(ast.parse(path.read_text(encoding="utf-8"))))
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        for node in top:
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        seen[name] = names
        parents = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
        todo += [*names, *parents]
    tops = {imported.split(".")[0]: (module, imported) for module, names in seen.items() for imported in names}
    assert "benchmarks.prediction" in seen
    assert "calce_jax.training.train_step" in seen
    assert {tops[name] for name in ABSENT if name in tops} == set()


@pytest.mark.release
def test_both_sides_have_the_same_weights(settings):
    """The layout of torch's weights is that of the conversion that published weights go through."""
    pytest.importorskip("torch")
    from benchmarks.gpu.shared_weights import SharedModels, to_jax  # noqa: PLC0415
    from benchmarks.models import minimal_config  # noqa: PLC0415
    from calce_jax.checkpoints.convert.huggingface import blip2_state_dict  # noqa: PLC0415
    from calce_jax.checkpoints.convert.weights import Weights, as_lazy  # noqa: PLC0415
    from calce_jax.config import LoraConfig  # noqa: PLC0415

    config = minimal_config(lora=LoraConfig(rank=2))
    models = SharedModels(config, settings)
    base = {name: as_lazy(tensor.numpy()) for name, tensor in models.tensors.items() if not name.endswith(("/a", "/b"))}
    expected = blip2_state_dict(Weights(base, {}, dataclasses.replace(config, lora=None), "random"))
    state = models.blip2.state_dict()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(state[name].numpy(), tensor.read(), err_msg=name)
    # A tied head would have overwritten the embedding.
    head, embedding = (state[f"language_model.{name}.weight"].numpy() for name in ("lm_head", "shared"))
    assert not np.array_equal(head, embedding)
    trained = models.new_calce(adapters=True)
    shared = models.tensors["t5/encoder/blocks/attention/q/kernel"]
    np.testing.assert_array_equal(trained.t5.encoder.blocks.attention.q.base.kernel[...], shared.numpy())
    kernel = models.tensors["t5_proj/kernel"]
    assert to_jax(kernel).unsafe_buffer_pointer() == kernel.data_ptr()
    # A program may overwrite trainable parameters.
    assert trained.t5_proj.kernel[...].unsafe_buffer_pointer() != kernel.data_ptr()


@pytest.fixture
def compiler_options():
    level = jax.config.jax_optimization_level
    yield
    jax.config.update("jax_optimization_level", level)


@pytest.mark.release
def test_rehearsal_of_the_ceilings(tmp_path, compiler_options, capsys):
    pytest.importorskip("torch")
    from benchmarks.gpu.__main__ import main  # noqa: PLC0415

    arguments = ["--rehearse", "--rounds=1", "--only=ceilings", f"--out={tmp_path}"]
    assert main(arguments, start=time.monotonic()) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["product of two matrices of 64, bfloat16", "copy of 0.000977 GiB"]
    assert rows[0]["tflop"] == pytest.approx(2 * 64**3 / 1e12)
    assert "| product of two matrices of 64, bfloat16 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--rehearse", "--only=Vit"])
    message = "--only=Vit: there is no such section; choose of 'ceilings', 'models', 'stage 1, 1 video'"
    assert message in capsys.readouterr().err


@pytest.mark.release
def test_rehearsal_without_what_a_machine_may_lack(tmp_path):
    """All sections, in a process that cannot import anything else; reading is skipped there, and is rehearsed below."""
    code = f"""
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {ABSENT} else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from benchmarks.gpu.__main__ import main
raise SystemExit(main(["--rehearse", "--rounds=1", "--budget=900", "--out={tmp_path}"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    statuses = {row["section"]: row["status"] for row in rows}
    assert statuses.pop("reading") == "skipped"
    assert set(statuses.values()) == {"measured"}
    # Two ceilings, twelve sections of one row, each size of Whisper twice, and the reading that is skipped.
    assert len(rows) == 2 + 12 + 4 + 1
    assert list(statuses)[:4] == ["ceilings", "stage 1, 1 video", "train step", "ViT"]
    for row in rows[2:-1]:
        assert row["notes"]["GiB"] > 0, row["name"]
        assert row["notes"].get("share of peak", 0) > 0, row["name"]


@pytest.mark.release
def test_rehearsal_of_reading(settings):
    from benchmarks.gpu.plan import Plan, Sizes  # noqa: PLC0415

    rows = list(Plan(settings, Sizes.rehearsal()).reading())
    assert [row.other for row in rows] == ["simplejpeg alone", "without augmentation"]
    for row in rows:
        assert row.notes["frames a second"] > 0
        assert row.agreement == "equal pixels: True"


@pytest.mark.release
def test_both_sides_take_the_same_training_steps(tmp_path):
    """In float32 without dropout the losses stay the same over three steps of the optimizer."""
    command = [sys.executable, "-m", "tests.helpers.gpu_training", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
