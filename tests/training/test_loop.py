import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calce_jax.checkpoints.manager import CheckpointError, Checkpoints
from calce_jax.checkpoints.workdir import checkpoint_steps
from calce_jax.config import OptimizerConfig
from calce_jax.inference.length_grouping import RowInfo
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.presets.runs import get_preset
from calce_jax.text.text_row import RowFlag
from calce_jax.training.feed import Feed
from calce_jax.training.loop import EvalResult, RunOutputs, TrainFunctions, TrainSchedule, train
from calce_jax.training.metric_log import MAX_SKIPPED, TrainingError
from calce_jax.training.metric_writer import open_metric_writer
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.progress import TrainProgress
from calce_jax.training.state import apply_gradients, create_train_state, is_finite
from calce_jax.training.utilization import Utilization

SCHEDULE = TrainSchedule(steps_per_epoch=5, epochs=3, log_every=2, eval_every=1)


class HalfOfThePeak(Utilization):
    """A utilization that is 0.5 for the frames and tokens of the batches here, whatever the time."""

    def mfu(self, *, frames, tokens, step_seconds):
        assert step_seconds > 0
        return frames * tokens / 960  # 12 frames, 40 tokens


HALF = HalfOfThePeak(get_preset("shapes,stage=1"), CalceConfig.tiny(64, 64), peak=1.0)
OPTIMIZER = make_optimizer(OptimizerConfig(accumulate=2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    x: np.ndarray
    row_info: RowInfo


def make_batch(rows):
    rows = np.asarray(rows)
    x = np.stack([np.cos(rows), np.sin(rows)], axis=1).astype(np.float32)
    row_flags = np.where(
        rows == 7, RowFlag.QUERY_TRUNCATED, np.where(rows == 8, RowFlag.QUERY_TRUNCATED | RowFlag.CAPTION_TRUNCATED, 0)
    )
    return Rows(x, RowInfo(rows, row_flags.astype(np.int32), np.full(len(rows), 3)))


def make_iterator():
    # Batches of 4 out of 18 rows, so that they straddle epochs.
    data = grain.MapDataset.range(18).shuffle(seed=7).repeat(None).to_iter_dataset()
    return iter(data.batch(4, batch_fn=make_batch))


@partial(jax.jit, static_argnames="harm")
def toy_step(state, batch, harm=""):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), state.step), (2,))

    def loss_of(params):
        loss = jnp.square(batch.x @ (params["kernel"] + 0.1 * noise) - params["bias"] - 1.0).mean()
        # At zero the square root is finite and its slope is not.
        return loss + {"": 0.0, "gradient": jnp.sqrt(0.0 * params["bias"]), "loss": jnp.nan * params["bias"]}[harm]

    loss, gradients = jax.value_and_grad(loss_of)(state.trainable)
    rate = jnp.float32(1e-2) / (1.0 + state.step.astype(jnp.float32))
    norm = jnp.abs(gradients["bias"])
    finite = is_finite(loss, norm)
    measured = {
        "loss": loss,
        "learning_rate": rate,
        "gradient_norm": norm,
        "skipped": (~finite).astype(jnp.float32),
        "tokens": jnp.float32(40),
        "padding": jnp.float32(0.25),
    }
    return apply_gradients(state, gradients, OPTIMIZER, rate, finite=finite), measured


def harming(*steps, harm="gradient"):
    """Make the loss or the gradient of these steps (counted from 1) not finite."""
    return lambda state, batch: toy_step(state, batch, harm if int(state.step) + 1 in steps else "")


def score(state):
    value = 50.0 - abs(float(state.step) - 10.0)
    return EvalResult(
        {"R1@0.5": value + 1, "R1_avg": value},
        images={"q1": np.zeros((2, 2, 3), np.uint8)},
        texts={"q1": "[[1, 2]]"},
    )


def run(workdir, step_fn=toy_step, evaluate=score, iterator=None, *, stop_on_signals=True, patience=0):
    state = create_train_state({"kernel": jnp.zeros(2), "bias": jnp.zeros(())}, OPTIMIZER)
    iterator = iterator or make_iterator()
    checkpoints = Checkpoints(workdir)
    if checkpoints.latest_step is not None:
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        state = checkpoints.restore(checkpoints.latest_step, abstract, iterator)
    try:
        with open_metric_writer(workdir) as writer:
            return train(
                state,
                Feed(iterator, lambda state: ((batch := next(iterator)).row_info, jax.tree.map(jnp.asarray, batch))),
                replace(SCHEDULE, patience=patience),
                TrainFunctions(step_fn, evaluate, lambda rows: [f"q{row}" for row in rows]),
                RunOutputs(checkpoints, {"seed": 42}, writer, HALF),
                stop_on_signals=stop_on_signals,
            )
    finally:
        checkpoints.close()


def send_signal_in(function, at, number=signal.SIGTERM):
    """Send a signal in the call for the state of a step."""

    def wrapped(state, *rest):
        if int(state.step) == at:
            os.kill(os.getpid(), number)
        return function(state, *rest)

    return wrapped


def queries_of(step):
    data = make_iterator()
    rows = [next(data).row_info.example_index for _ in range(step)][-1]
    return ", ".join(f"q{row}" for row in rows)


def assert_finite(workdir):
    """Check that all values of all checkpoints are finite."""
    checkpoints = Checkpoints(workdir)
    state = create_train_state({"kernel": jnp.zeros(2), "bias": jnp.zeros(())}, OPTIMIZER)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
    for step in checkpoint_steps(workdir):
        for leaf in jax.tree.leaves(checkpoints.restore(step, abstract, make_iterator())):
            assert np.isfinite(leaf).all()
    checkpoints.close()


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return run(workdir), workdir


def scalars(workdir, name):
    events = EventAccumulator(str(workdir)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_the_steps_of_evaluation():
    schedule = TrainSchedule(steps_per_epoch=5, epochs=3, log_every=2, eval_every=2)
    assert [step for step in range(16) if schedule.is_eval_step(step)] == [10, 15]


def test_a_whole_run_keeps_latest_and_best_and_is_logged(uninterrupted):
    state, workdir = uninterrupted
    assert int(state.step) == 15
    assert checkpoint_steps(workdir) == [10, 15]
    assert scalars(workdir, "eval/R1_avg") == {5: 45.0, 10: 50.0, 15: 45.0}
    assert list(scalars(workdir, "Loss/train")) == [4, 6, 8, 10, 12, 14]
    assert set(scalars(workdir, "data/padding").values()) == {0.25}
    # TensorBoard shows groups in this order, in which capitals are first.
    assert min(EventAccumulator(str(workdir)).Reload().Tags()["scalars"]) == "Loss/train"
    assert all(rate > 0 for rate in scalars(workdir, "speed/frames_per_second").values())
    assert set(scalars(workdir, "speed/mfu").values()) == {0.5}
    assert EventAccumulator(str(workdir)).Reload().Tags()["images"] == ["samples/q1"]


@pytest.mark.slow
def test_losses_and_scores_are_lines_where_stderr_is_no_terminal(tmp_path, capsys):
    run(tmp_path)
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert [re.sub(r"[\d.]+e-\d+|\d+\.\d+", "#", line) for line in lines[:3]] == [
        "step 4/15  loss #  lr #  mfu #%",
        "epoch 1/3  loss #  R1_avg #",
        "step 6/15  loss #  lr #  mfu #%",
    ]
    logged = scalars(tmp_path, "Loss/train")
    losses = {int(line.split("/")[0].removeprefix("step ")): line.split()[3] for line in lines if "step" in line}
    assert losses == {step: f"{loss:.3f}" for step, loss in logged.items()}
    # The evaluation after step 15 waits for its loss, which no log has.
    last = f"{float(toy_loss_of_step(15)):.3f}"
    assert lines[-1] == f"epoch 3/3  loss {last}  R1_avg 45.00"


def toy_loss_of_step(step):
    """Return the mean loss of the steps that are logged after step 12, up to this one."""
    state, data, losses = (
        create_train_state({"kernel": jnp.zeros(2), "bias": jnp.zeros(())}, OPTIMIZER),
        make_iterator(),
        [],
    )
    for _ in range(step):
        batch = next(data)
        state, measured = toy_step(state, jax.tree.map(jnp.asarray, batch))
        losses.append(measured["loss"])
    return np.mean(losses[12:])


@pytest.mark.parametrize(("is_terminal", "host"), [(True, 0), (True, 1), (False, 1)])
def test_a_bar_in_a_terminal_and_nothing_on_other_hosts(tmp_path, capsys, monkeypatch, is_terminal, host):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    monkeypatch.setattr(jax, "process_index", lambda: host)
    progress = TrainProgress(15, 2)
    with progress:
        progress.update()
        progress.log(3, {"loss": "1.500"})
        progress.print("epoch 1/3")
    printed = capsys.readouterr().err
    assert ("epoch 1/3" in printed) == ("loss=1.500" in printed) == ("3/15" in printed) == (host == 0)
    assert "step 3/15" not in printed


@pytest.mark.slow
def test_what_does_not_fit_is_counted_with_the_metrics_and_named_once(tmp_path, caplog):
    run(tmp_path)
    data, expected, mended = make_iterator(), {}, []
    for step in range(1, SCHEDULE.total_steps + 1):
        mended += (next(data).row_info.row_flags != 0).tolist()
        # Nothing is written at step 2, where all that was measured is still under way.
        if step % SCHEDULE.log_every == 0 and step > 2:
            expected[step], mended = np.mean(mended), []
    assert scalars(tmp_path, "data/mended") == pytest.approx(expected)
    assert any(expected.values())
    messages = [record.getMessage() for record in caplog.records if "training:" in record.getMessage()]
    assert messages == ["training: query truncated: 2 queries (q7, q8)", "training: caption truncated: 1 query (q8)"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "number"),
    [
        (3, signal.SIGTERM),
        pytest.param(5, signal.SIGINT, marks=pytest.mark.release),
        pytest.param(7, signal.SIGTERM, marks=pytest.mark.release),
    ],
)
@pytest.mark.usefixtures("signals_heard")
def test_stopped_in_a_step_and_resumed_equals_uninterrupted(uninterrupted, tmp_path, capsys, at, number):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, step_fn=send_signal_in(toy_step, at, number))
    assert stopped.value.code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert f"stopped by {number.name} after step {at + 1} of 15" in capsys.readouterr().err
    assert checkpoint_steps(tmp_path)[-1] == at + 1
    assert_same(run(tmp_path), uninterrupted[0])
    assert checkpoint_steps(tmp_path) == [10, 15]


@pytest.mark.slow
def test_stopped_in_an_evaluation_evaluates_first_when_resumed(uninterrupted, tmp_path):
    with pytest.raises(SystemExit):
        run(tmp_path, evaluate=send_signal_in(score, 10))
    assert checkpoint_steps(tmp_path) == [5, 10]
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


@pytest.mark.slow
@pytest.mark.parametrize("harm", [pytest.param("loss", marks=pytest.mark.release), "gradient"])
def test_a_step_that_is_not_finite_is_skipped_counted_and_named(tmp_path, caplog, harm):
    states = {}

    def noting(state, batch):
        after, measured = harming(7, harm=harm)(state, batch)
        states[int(after.step)] = jax.device_get(after)
        assert bool(jnp.isfinite(measured["loss"])) == (harm == "gradient" or int(after.step) != 7)
        return after, measured

    state = run(tmp_path, step_fn=noting)
    assert_same(replace(states[7], step=states[6].step), states[6])
    assert int(state.step) == 15
    # Micro-steps 1 to 6 are three of the optimizer's; the fourth is made of 8 and 9, the last gradient waits.
    assert (int(state.opt_state.gradient_step), int(state.opt_state.mini_step)) == (7, 0)
    assert checkpoint_steps(tmp_path) == [10, 15]
    assert_finite(tmp_path)
    messages = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith("training: step 7 was skipped: its loss is ")
    assert messages[0].endswith(f"its queries are {queries_of(7)}")
    # What is written at step 10 is of steps 7 and 8, by the lag of two.
    assert {step: count for step, count in scalars(tmp_path, "train/skipped").items() if count} == {10: 1.0}
    assert all(np.isfinite(value) for value in scalars(tmp_path, "Loss/train").values())
    assert all(np.isfinite(value) for value in scalars(tmp_path, "train/gradient_norm").values())


@pytest.mark.slow
def test_a_run_with_a_skipped_step_resumes_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", step_fn=harming(7))
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", step_fn=send_signal_in(harming(7), 6))
    assert checkpoint_steps(tmp_path / "stopped")[-1] == 7
    assert_same(run(tmp_path / "stopped"), whole)


@pytest.mark.slow
def test_a_log_of_skipped_steps_alone_has_no_loss(tmp_path):
    # The lag leaves step 5 to the log of step 8, but for the evaluation, which waits.
    run(tmp_path, step_fn=harming(3, 4, 5))
    assert scalars(tmp_path, "train/skipped")[6] == 3.0
    assert 6 not in scalars(tmp_path, "Loss/train")
    assert 6 in scalars(tmp_path, "train/learning_rate")


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("harm", ["loss", "gradient"])
def test_many_skipped_in_a_row_end_the_run_with_two_remedies_that_work(tmp_path, harm):
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, step_fn=harming(*range(11, 16), harm=harm))
    text = str(raised.value)
    assert text.startswith("5 steps in a row had a loss or a gradient that is not finite and were skipped")
    for step in range(11, 16):
        assert f"step {step}: {queries_of(step)}" in text
    assert "the same command then goes on from step 10, whose values are finite" in text
    assert f"remove {tmp_path / 'checkpoints/10'} to go on from step 5" in text
    assert f"config.weights.start={tmp_path}" in text
    assert checkpoint_steps(tmp_path) == [5, 10]
    assert_finite(tmp_path)

    # Both remedies lead to the result of a run without such steps.
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "other/checkpoints")
    shutil.rmtree(tmp_path / "other/checkpoints/10")
    whole = run(tmp_path / "whole")
    for workdir in (tmp_path, tmp_path / "other"):
        first = []

        def noting(state, batch, first=first):
            first.append(int(state.step))
            return toy_step(state, batch)

        assert_same(run(workdir, step_fn=noting), whole)
        assert first[0] == (10 if workdir == tmp_path else 5)
        assert checkpoint_steps(workdir) == [10, 15]


def test_many_skipped_before_the_first_checkpoint(tmp_path):
    evaluated = []
    with pytest.raises(TrainingError, match="the same command then starts anew, since no checkpoint was saved"):
        run(tmp_path, step_fn=harming(*range(1, 6)), evaluate=evaluated.append)
    assert checkpoint_steps(tmp_path) == evaluated == []


@pytest.mark.slow
@pytest.mark.release
def test_a_finite_step_in_between_begins_the_count_anew(tmp_path):
    assert MAX_SKIPPED == 5
    assert int(run(tmp_path, step_fn=harming(2, 3, 4, 5, 7, 8, 9, 10)).step) == 15
    assert_finite(tmp_path)


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    """Also if a step does not skip it."""

    def broken(state, batch):
        state, measured = toy_step(state, batch)
        bias = jnp.where(state.step == 7, jnp.nan, state.trainable["bias"])
        return replace(state, trainable={**state.trainable, "bias": bias}), {**measured, "skipped": jnp.float32(0)}

    with pytest.raises(CheckpointError, match=r"checkpoints/10 is not saved: trainable/bias.* from step 5"):
        run(tmp_path, step_fn=broken)
    assert checkpoint_steps(tmp_path) == [5]
    assert int(run(tmp_path).step) == 15


@pytest.mark.slow
def test_a_score_that_is_no_number_is_never_the_best(tmp_path):
    def scoring(state):
        value = {5: 3.0, 10: float("nan"), 15: 1.0}[int(state.step)]
        return EvalResult({"R1_avg": value})

    run(tmp_path, evaluate=scoring)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step_and_metric == (5, 3.0)
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [5, 10, 15]


def score_falling_after(step):
    """Return an evaluation whose best score is that of the first epoch that ends at or after `step`."""
    return lambda state: EvalResult({"R1_avg": 50.0 - max(float(state.step) - step, 0.0)})


@pytest.mark.parametrize(("patience", "last"), [(1, 10), (2, 15), (0, 15)])
def test_patience_ends_a_run_and_says_so(tmp_path, capsys, patience, last):
    assert int(run(tmp_path, evaluate=score_falling_after(5), patience=patience).step) == last
    expected = (
        "stopped early after step 10 of 15: no better R1_avg than 50.00 in the last evaluation; to go on, raise "
        "--config.loop.patience=1"
    )
    assert (expected in capsys.readouterr().err.splitlines()) == (last == 10)


@pytest.mark.slow
def test_patience_counts_across_a_resume_and_a_run_that_it_ended_goes_on_with_more(uninterrupted, tmp_path, capsys):
    evaluate = score_falling_after(5)
    with pytest.raises(SystemExit):
        run(tmp_path, step_fn=send_signal_in(toy_step, 11), evaluate=evaluate, patience=2)
    assert int(run(tmp_path, evaluate=evaluate, patience=1).step) == 12  # one evaluation had no gain before
    assert "stopped early after step 12 of 15" in capsys.readouterr().err
    assert_same(run(tmp_path, evaluate=evaluate, patience=3), uninterrupted[0])
    assert "stopped early" not in capsys.readouterr().err
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.read_metadata(15)["evaluations_without_gain"] == 2
    checkpoints.close()


def test_a_better_score_begins_the_count_anew(tmp_path):
    scores = iter([40.0, 39.0, 41.0])
    assert int(run(tmp_path, evaluate=lambda _: EvalResult({"R1_avg": next(scores)}), patience=2).step) == 15


def rewarding(step, equal):
    """Add metrics of training by rewards to a step of the toy."""
    return lambda state, batch: (
        (after := step(state, batch))[0],
        after[1] | {"reward": jnp.float32(0.625), "equal": jnp.float32(equal(int(state.step)))},
    )


def test_rewards_are_logged_and_equal_ones_are_told_once(tmp_path, capsys, caplog):
    # Steps 5 to 10 have no gradient; what is logged at steps 8, 10 and 12 is of steps 5 to 10.
    run(tmp_path, step_fn=rewarding(toy_step, lambda step: 1.0 if 4 <= step < 10 else 0.5))
    assert set(scalars(tmp_path, "train/reward").values()) == {0.625}
    assert all("reward 0.625" in line for line in capsys.readouterr().err.splitlines() if line.startswith("step "))
    messages = [record.getMessage() for record in caplog.records if "no gradient" in record.getMessage()]
    assert len(messages) == 1
    assert "raise config.reward.temperature or config.reward.rollouts" in messages[0]


def test_data_that_end_early(tmp_path):
    short = iter(grain.MapDataset.range(8).to_iter_dataset().batch(4, batch_fn=make_batch))
    with pytest.raises(TrainingError, match="data end before step 2 of 15"):
        run(tmp_path, iterator=short)


@pytest.mark.usefixtures("signals_heard")
def test_a_second_ctrl_c_stops_at_once(tmp_path, capsys):
    def twice(state, *rest):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return toy_step(state, *rest)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, step_fn=twice)
    assert "Ctrl-C again stops at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
@pytest.mark.usefixtures("signals_heard")
def test_handlers_of_signals_are_set_while_training_on_request_alone(uninterrupted, tmp_path):
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    handlers = []

    def noting(state):
        handlers.append(signal.getsignal(signal.SIGTERM))
        return score(state)

    run(tmp_path / "command", evaluate=noting)
    assert signal.SIG_DFL not in handlers
    handlers.clear()
    run(tmp_path / "library", evaluate=noting, stop_on_signals=False)
    assert handlers == [signal.SIG_DFL] * SCHEDULE.epochs


def test_an_ignored_signal_stays_ignored_while_training(tmp_path):
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(tmp_path, step_fn=send_signal_in(toy_step, 3, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, previous)
    assert checkpoint_steps(tmp_path)[-1] == 15
