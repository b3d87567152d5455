import os
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calce_jax.checkpoints.manager import Checkpoints, steps_in
from calce_jax.config import OptimizerConfig
from calce_jax.text.text_row import Note
from calce_jax.training.loop import Evaluation, Plan, TrainingError, train
from calce_jax.training.metric_writer import open_writer
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import apply_gradients, new_state

PLAN = Plan(steps_per_epoch=5, epochs=3, log_every=2, eval_every=1)
OPTIMIZER = make_optimizer(OptimizerConfig(accumulate=2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05))


@struct.dataclass
class Rows:
    x: np.ndarray
    row: np.ndarray
    present: np.ndarray
    notes: np.ndarray


def make_batch(rows):
    rows = np.asarray(rows)
    x = np.stack([np.cos(rows), np.sin(rows)], axis=1).astype(np.float32)
    notes = np.where(rows == 7, Note.QUERY_CUT, np.where(rows == 8, Note.QUERY_CUT | Note.CAPTION_CUT, 0))
    return Rows(x, rows, np.ones((len(rows), 3), bool), notes.astype(np.int32))


def make_iterator():
    # Batches of 4 out of 18 rows, so that they straddle epochs.
    data = grain.MapDataset.range(18).shuffle(seed=7).repeat(None).to_iter_dataset()
    return iter(data.batch(4, batch_fn=make_batch))


@jax.jit
def toy_step(state, batch):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), state.step), (2,))

    def loss_of(params):
        return jnp.square(batch.x @ (params["kernel"] + 0.1 * noise) - params["bias"] - 1.0).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.trainable)
    rate = jnp.float32(1e-2) / (1.0 + state.step.astype(jnp.float32))
    measured = {
        "loss": loss,
        "learning_rate": rate,
        "gradient_norm": jnp.abs(gradients["bias"]),
        "tokens": jnp.float32(40),
        "padding": jnp.float32(0.25),
    }
    return apply_gradients(state, gradients, OPTIMIZER, rate), measured


def score(state):
    value = 50.0 - abs(float(state.step) - 10.0)
    return Evaluation(
        {"R1@0.5": value + 1, "R1_avg": value},
        images={"q1": np.zeros((2, 2, 3), np.uint8)},
        texts={"q1": "[[1, 2]]"},
    )


def run(workdir, step_fn=toy_step, evaluate=score, plan=PLAN, iterator=None):
    state = new_state({"kernel": jnp.zeros(2), "bias": jnp.zeros(())}, OPTIMIZER)
    iterator = iterator or make_iterator()
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest is not None:
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        state = checkpoints.restore(checkpoints.latest, abstract, iterator)
    try:
        with open_writer(workdir) as writer:
            return train(
                state,
                iterator,
                lambda state: (batch := next(iterator), jax.tree.map(jnp.asarray, batch)),
                plan=plan,
                step_fn=step_fn,
                evaluate=evaluate,
                checkpoints=checkpoints,
                record={"seed": 42},
                writer=writer,
                queries=lambda rows: [f"q{row}" for row in rows],
            )
    finally:
        checkpoints.close()


def terminating(function, at):
    """Let SIGTERM arrive during the call for the state of a step."""

    def wrapped(state, *rest):
        if int(state.step) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(state, *rest)

    return wrapped


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return run(workdir), workdir


def scalars(workdir, name):
    events = EventAccumulator(str(workdir)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_a_whole_run_keeps_latest_and_best_and_is_logged(uninterrupted):
    state, workdir = uninterrupted
    assert int(state.step) == 15
    assert steps_in(workdir) == [10, 15]
    assert scalars(workdir, "eval/R1_avg") == {5: 45.0, 10: 50.0, 15: 45.0}
    assert list(scalars(workdir, "train/loss")) == [4, 6, 8, 10, 12, 14]
    assert set(scalars(workdir, "data/padding").values()) == {0.25}
    assert all(rate > 0 for rate in scalars(workdir, "speed/frames_per_second").values())
    assert EventAccumulator(str(workdir)).Reload().Tags()["images"] == ["samples/q1"]


def test_what_does_not_fit_is_counted_with_the_metrics_and_named_once(tmp_path, caplog):
    run(tmp_path)
    data, expected, mended = make_iterator(), {}, []
    for step in range(1, PLAN.steps + 1):
        mended += (next(data).notes != 0).tolist()
        # Nothing is written at step 2, where all that was measured is still under way.
        if step % PLAN.log_every == 0 and step > 2:
            expected[step], mended = np.mean(mended), []
    assert scalars(tmp_path, "data/mended") == pytest.approx(expected)
    assert any(expected.values())
    told = [record.getMessage() for record in caplog.records if "training:" in record.getMessage()]
    assert told == ["training: query cut: 2 queries (q7, q8)", "training: caption cut: 1 query (q8)"]


@pytest.mark.parametrize("at", [3, 5, 7])
def test_stopped_in_a_step_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, capsys, at):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, step_fn=terminating(toy_step, at))
    assert stopped.value.code == 0
    assert f"stopped by SIGTERM after step {at + 1} of 15" in capsys.readouterr().err
    assert steps_in(tmp_path)[-1] == at + 1
    assert_same(run(tmp_path), uninterrupted[0])
    assert steps_in(tmp_path) == [10, 15]


def test_stopped_in_an_evaluation_evaluates_first_when_resumed(uninterrupted, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, evaluate=terminating(score, 10))
    assert steps_in(tmp_path) == [5, 10]
    evaluated = []

    def noting(state):
        evaluated.append(int(state.step))
        return score(state)

    assert_same(run(tmp_path, evaluate=noting), uninterrupted[0])
    assert evaluated == [10, 15]


def test_a_finished_run_does_nothing_more(uninterrupted):
    state, workdir = uninterrupted

    def refuse(*_):
        raise AssertionError("called")

    assert_same(run(workdir, step_fn=refuse, evaluate=refuse), state)


def test_a_loss_that_is_no_number_is_named_and_not_saved(tmp_path):
    def broken(state, batch):
        state, measured = toy_step(state, batch)
        loss = jnp.where(state.step == 7, jnp.nan, measured["loss"])
        return state, {**measured, "loss": loss}

    with pytest.raises(TrainingError, match=r"loss of step 7 is nan; its queries are q\d+, q\d+, q\d+, q\d+\. Look"):
        run(tmp_path, step_fn=broken)
    assert steps_in(tmp_path) == [5]


def test_data_that_end_early(tmp_path):
    short = iter(grain.MapDataset.range(8).to_iter_dataset().batch(4, batch_fn=make_batch))
    with pytest.raises(TrainingError, match="data end before step 2 of 15"):
        run(tmp_path, iterator=short)


def test_signal_handler_is_put_back(uninterrupted):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
