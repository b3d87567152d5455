"""A run of training by rewards: where it starts, what it is told, and that it goes on as if it had not stopped."""

import dataclasses
import os
import signal

import grain
import jax
import numpy as np
import pytest

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.params_file import CheckpointError
from calce_jax.checkpoints.restore import load_weights
from calce_jax.config import ConfigError
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import make_mesh
from calce_jax.training.loop import EvalResult
from calce_jax.training.objective import load_reference
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.run import train_run
from calce_jax.training.state import create_train_state
from tests.training.test_run import SIZES, VOCAB, B, make_batch, make_run_data, tiny_config

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
        assert load_reference(config, {}, {}) == (None, {})


def make_labelled_batch(rows):
    """Return a batch of `make_batch` with answers of `PIECES`; those of the last row are unknown."""
    batch = make_batch(rows)
    labels = np.zeros_like(batch.labels)
    labels[:-1, 0] = 2 + batch.example_index[:-1] % 4
    labels[:-1, 1] = 1
    return dataclasses.replace(batch, labels=labels)


def reward_data(sigterm_at=None):
    """Return the data of `make_run_data` with labels that can be read, and an evaluation that predicts nothing."""
    evaluated = []

    def evaluate(predict):
        evaluated.append(1)
        if len(evaluated) == sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return EvalResult({"R1_avg": float(len(evaluated))})

    data = grain.MapDataset.range(8).shuffle(seed=3).repeat(None).to_iter_dataset()
    iterator = iter(data.batch(B, batch_fn=make_labelled_batch))
    return dataclasses.replace(make_run_data(), train_iterator=iterator, evaluate=evaluate, answer_pieces=PIECES)


def save_start(workdir, config, step, score):
    """Save trainables as the checkpoint of another run."""
    trainable = load_weights(SIZES, config, make_mesh("single"))[0]
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
    assert "step 3/4  loss" in printed  # of steps 1 and 2
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
    batch = make_labelled_batch(range(B))
    assert [PIECES[i] for i in batch.labels[:, 0]] == ["[[0, 2]]", "[[1, 4]]", "[[0, 2], [3, 5]]", "<pad>"]
