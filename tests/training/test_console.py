"""What a run says on stderr."""

from dataclasses import replace
from pathlib import Path

import pytest

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.distributed.sharding import make_mesh
from calce_jax.presets.runs import get_preset
from calce_jax.training import console
from calce_jax.training.console import model_lines, next_lines, print_lines, result_lines, schedule_lines
from calce_jax.training.loop import TrainSchedule
from tests.helpers.documented_commands import check_command, command

CONFIG = get_preset("shapes,stage=2")
SCHEDULE = TrainSchedule(steps_per_epoch=5, epochs=3, log_every=2, eval_every=1)


def test_model_and_devices():
    assert model_lines(CONFIG, make_mesh("single"), 1234, 5_678_901) == [
        "stage 2 of shapes at the size tiny, on 1 device (cpu)",
        "1,234 parameters are trained, 5,678,901 are frozen",
    ]
    assert "on 4 devices (cpu)" in model_lines(CONFIG, make_mesh("a100x4"), 1, 2)[0]


@pytest.mark.parametrize(("step", "made"), [(0, ""), (7, "; 7 are made")])
def test_length_of_a_run(step, made):
    first, second = schedule_lines(CONFIG, Path("runs/a"), SCHEDULE, step, is_finished=False)
    assert first == f"3 epochs of 5 steps, 15 in all, with {CONFIG.data.batch} queries each{made}"
    assert second == "compiling the training step; this takes a while once"


def test_a_run_that_ended_early_is_not_compiled():
    assert schedule_lines(CONFIG, Path("runs/a"), SCHEDULE, 10, is_finished=True) == []


def test_training_by_rewards_is_named():
    lines = model_lines(replace(CONFIG, objective="reward"), make_mesh("single"), 1, 2)
    assert "by rewards of 8 answers a query, on 1 device" in lines[0]


def test_a_finished_run():
    assert schedule_lines(CONFIG, Path("runs/a"), SCHEDULE, 15, is_finished=True) == [
        "runs/a is finished at step 15; to go on, raise --config.schedule.epochs=3; to train otherwise, choose another "
        "--workdir"
    ]


@pytest.mark.parametrize(
    ("best", "latest", "lines"),
    [
        ((10, 45.678), 15, ["the best checkpoint is /w/checkpoints/10, R1_avg 45.68 on val"]),
        (None, 15, ["the latest checkpoint is /w/checkpoints/15; none has a score"]),
        (None, None, []),
    ],
)
def test_result(monkeypatch, best, latest, lines):
    monkeypatch.setattr(Checkpoints, "best_step_and_metric", best)
    monkeypatch.setattr(Checkpoints, "latest_step", latest)
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.folder = Path("/w/checkpoints")
    assert result_lines(CONFIG, checkpoints) == lines


def test_the_next_commands_can_be_typed():
    config = replace(CONFIG, data=replace(CONFIG.data, eval_split="test"))
    watch, predict = next_lines(config, Path("my runs/a"))
    assert watch == "to watch it: tensorboard --logdir='my runs/a'"
    assert predict == "to predict with it: calce infer --workdir='my runs/a' --split=test --out='my runs/a/test.jsonl'"
    check_command(command("here", predict.partition(": ")[2], is_complete=True))


def test_the_first_host_alone_speaks_and_on_stderr(capsys, monkeypatch):
    for is_primary in (True, False):
        monkeypatch.setattr(console, "is_primary", lambda is_primary=is_primary: is_primary)
        print_lines([f"primary {is_primary}"])
    assert capsys.readouterr() == ("", "primary True\n")
