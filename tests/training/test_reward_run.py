"""A run of training by rewards: where it starts, what it is told, and that it goes on as if it had not stopped."""

import dataclasses
import os
import signal

import jax
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.params_file import CheckpointError
from calce_jax.checkpoints.restore import build_model
from calce_jax.config import ConfigError
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import make_mesh
from calce_jax.training.loop import EvalResult
from calce_jax.training.objective import load_reference
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.run import train_run
from calce_jax.training.state import create_train_state
from tests.training.test_run import SIZES, VOCAB, make_batch, make_run_data, tiny_config

PIECES = ("<pad>", "</s>", "[[0, 2]]", "[[1, 4]]", "[[0, 2], [3, 5]]", "[]", *["x"] * (VOCAB - 6))


@pytest.mark.parametrize("start", ["", "missing"])
def test_a_run_by_rewards_needs_a_trained_run(tmp_path, start):
    config = tiny_config(objective="reward", weights={"base": "", "start": start and str(tmp_path / start)})
    expected = ConfigError if not start else CheckpointError
    message = r"config\.weights\.start: must be the workdir of .* got ''; train it first" if not start else "no checkp"
    with pytest.raises(expected, match=message):
        train_run(config, tmp_path / "run", make_run_data())
    assert not (tmp_path / "run/checkpoints").exists()


def test_the_reference_is_read_where_it_is_needed_alone(tmp_path):
    for config in (tiny_config(), tiny_config(objective="reward", weights={"base": "", "start": str(tmp_path)})):
        assert load_reference(config, nnx.State({}), {}) == (None, {})


def with_labels(batches):
    """Replace the labels of batches by answers of `PIECES`; those of the last row are unknown."""
    for batch in batches:
        labels = np.zeros_like(batch.labels)
        labels[:-1, 0] = 2 + batch.example_index[:-1] % 4
        labels[:-1, 1] = 1
        yield dataclasses.replace(batch, labels=labels)


class LabelledIterator:
    """Wraps the iterator of a run's data, whose position is saved."""

    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return self

    def __next__(self):
        return next(with_labels([next(self._batches)]))

    def __getattr__(self, name):
        return getattr(self._batches, name)


def reward_data(sigterm_at=None):
    """Return the data of `make_run_data` with labels that can be read, and an evaluation that predicts nothing."""
    evaluated = []

    def evaluate(predict):
        evaluated.append(1)
        if len(evaluated) == sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return EvalResult({"R1_avg": float(len(evaluated))})

    data = make_run_data()
    return dataclasses.replace(
        data, train_iterator=LabelledIterator(data.train_iterator), evaluate=evaluate, answer_pieces=PIECES
    )


def save_start(workdir, config, step, score):
    """Save trainables as the checkpoint of another run."""
    trainable = build_model(SIZES, config, make_mesh("single"))[1]
    state = dataclasses.replace(
        create_train_state(trainable, make_optimizer(config.optimizer)), step=jax.numpy.int32(step)
    )
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, make_run_data().train_iterator, {}, {"R1_avg": score})
    checkpoints.close()


@pytest.mark.release
def test_a_run_by_rewards_goes_on_bit_for_bit(tmp_path, capsys):
    start = tmp_path / "start"
    config = tiny_config(
        objective="reward",
        reward={"rollouts": 2, "kl": 0.1},
        weights={"base": "", "start": str(start)},
        loop={"log_every": 1},
    )
    save_start(start, config, 3, 1.0)
    whole = train_run(config, tmp_path / "whole", reward_data())
    printed = capsys.readouterr().err
    assert "by rewards of 2 answers a query" in printed
    assert "step 4/4  loss" in printed
    assert "  reward 0." in printed

    with pytest.raises(SystemExit):
        train_run(config, tmp_path / "stopped", reward_data(sigterm_at=1), stop_on_signals=True)
    resumed = train_run(config, tmp_path / "stopped", reward_data())
    assert (int(whole.step), int(resumed.step)) == (4, 4)
    before = named_leaves(resumed)
    for name, leaf in named_leaves(whole).items():
        assert np.asarray(leaf).tobytes() == np.asarray(before[name]).tobytes(), name

    checkpoints = Checkpoints(tmp_path / "stopped")
    assert checkpoints.read_metadata(4)["reference"] == "3"
    checkpoints.close()
    save_start(start, config, 5, 2.0)
    with pytest.raises(ConfigError, match=r"the best checkpoint of .*start is 5 now, and was 3 when this run started"):
        train_run(config, tmp_path / "stopped", reward_data())


def test_batches_have_answers_that_can_be_read():
    (batch,) = with_labels([make_batch(range(4))])
    assert [PIECES[i] for i in batch.labels[:, 0]] == ["[[0, 2]]", "[[1, 4]]", "[[0, 2], [3, 5]]", "<pad>"]
