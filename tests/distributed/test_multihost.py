"""Two hosts with two devices each compute what one host with four does; both are processes on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calce_jax.checkpoints.workdir import checkpoint_steps
from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.distributed.multihost import (
    HEARTBEAT_TIMEOUT_S,
    DistributedError,
    broadcast_int,
    initialize_distributed,
    is_primary,
    preemption_requested,
    process_info,
)
from calce_jax.distributed.param_names import named_leaves
from calce_jax.inference.trained_run import load_trained_model
from calce_jax.moments.annotations import Annotation
from calce_jax.training.metric_log import METRICS_LAG_STEPS
from calce_jax.video.decode import encode_jpeg
from tests.helpers.commands import run_script, xla_test_flags

ROOT = Path(__file__).parents[2]
FRAMES, SIZE, TRAIN, VAL = 6, 56, 8, 6
EPOCHS, STEPS = 6, 12
CONFIG = (
    "--config=configs/calce.py:shapes,stage=1",
    "--config.mesh=a100x4",
    f"--config.data.frames={FRAMES}",
    "--config.data.captions=2",
    "--config.data.batch=4",
    "--config.data.eval_batch=4",
    "--config.data.augment",
    "--config.data.group=2",
    "--config.keyframes.clusters=3",
    f"--config.schedule.epochs={EPOCHS}",
    "--config.schedule.warmup_steps=2",
    "--config.schedule.peak=1e-4",
    "--config.schedule.floor=1e-5",
    "--config.text.buckets=(192,)",
    "--config.generation.beams=2",
    "--config.weights.base=",
    "--config.loop.log_every=1",
    f"--config.loop.eval_every={EPOCHS}",
    "--config.loop.samples=1",
)


def video(name):
    rng = np.random.default_rng(int(name))
    frames = rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    return VideoRecord(
        name,
        FRAMES,
        1.0,
        float(FRAMES),
        np.arange(FRAMES, dtype=np.int32),
        np.arange(FRAMES, dtype=np.float32),
        encode_jpeg(frames),
        [(1.0, 2.0, "we found the lighthouse")],
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Tables of noise; the number of queries of `val` is not a multiple of the batch size."""

    def queries(count):
        return [
            Annotation(f"q{i}", str(i // 2), f"a red circle {i}", ["red circle"], float(FRAMES), [[1.0, 2.0 + i % 4]])
            for i in range(count)
        ]

    folder = tmp_path_factory.mktemp("prepared")
    build_tables(folder, "shapes", {"train": queries(TRAIN), "val": queries(VAL)}, video)
    return folder


def start(*command):
    """Start a launch script on both hosts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"XLA_FLAGS": xla_test_flags(2)}
    return [
        Host([sys.executable, *command, f"--coordinator={address}", "--hosts=2", f"--host={host}"], environment)
        for host in range(2)
    ]


class Host(subprocess.Popen):
    """A process whose output goes to files, so that a full pipe never blocks it."""

    def __init__(self, command, environment):
        self._files = stdout, stderr = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        super().__init__(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)

    def read_output(self):
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return tuple(texts)


def wait_for_all(hosts, code=0):
    """Wait for all and return stdout and stderr of each; after a failure the others, which wait for it, are killed."""
    deadline = time.monotonic() + 400
    while (
        None in (codes := [host.poll() for host in hosts])
        and not {*codes} - {None, code}
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    for host in hosts:
        host.kill()
        host.wait()
    outputs = [host.read_output() for host in hosts]
    assert codes == [code] * len(hosts), "\n\n".join(errors[-3000:] for _, errors in outputs)
    return outputs


def wait_for_checkpoint(workdir, processes):
    while not checkpoint_steps(workdir):
        for process in processes:
            if process.poll() is not None:
                wait_for_all(processes)
                raise AssertionError("the run ended before its first checkpoint")
        time.sleep(0.1)


def losses(workdir):
    events = EventAccumulator(str(workdir)).Reload()
    return {event.step: event.value for event in events.Scalars("Loss/train")}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_single_host():
    initialize_distributed("")
    assert process_info() == {"process_index": 0, "process_count": 1}
    assert is_primary()
    assert broadcast_int(7) == 7
    assert not preemption_requested(3)


@pytest.mark.parametrize(
    ("description", "named"),
    [
        (("", 2, 0), "--coordinator: missing"),
        (("localhost:1", 2, None), "needs --hosts .* and --host"),
        (("localhost:1", 2, 2), r"--host: must be in \[0, 1\], got 2"),
    ],
)
def test_an_incomplete_description_of_hosts_is_refused(description, named):
    with pytest.raises(DistributedError, match=named):
        initialize_distributed(*description)


@pytest.mark.slow
@pytest.mark.release
# ml_collections reads a config's file in a way that Python 3.11 calls old.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_two_hosts_train_stop_go_on_and_infer_as_one(prepared, tmp_path):
    train = (*CONFIG, f"--config.data.directory={prepared}")
    together, alone = tmp_path / "together", tmp_path / "alone"

    # SIGTERM to one stops both at the same step.
    hosts = start("launch/train.py", *train, f"--workdir={together}")
    wait_for_checkpoint(together, hosts)
    hosts[1].send_signal(signal.SIGTERM)
    outputs = wait_for_all(hosts, code=128 + signal.SIGTERM)
    stopped = checkpoint_steps(together)[-1]
    assert 0 < stopped < STEPS
    for _, errors in outputs:
        assert f"stopped by SIGTERM after step {stopped} of {STEPS}" in errors

    wait_for_all(start("launch/train.py", *train, f"--workdir={together}"))
    run_script("train", *train, f"--workdir={alone}")
    assert checkpoint_steps(together)[-1] == checkpoint_steps(alone)[-1] == STEPS
    assert len(list(together.glob("events.out.tfevents*"))) == 2, "one writer for each of the two parts"
    here, there = losses(together), losses(alone)
    # Metrics are written with a lag, so not for every step. The first ones after a stop are means of fewer steps than
    # in an uninterrupted run.
    both = {step for step in here.keys() & there.keys() if not stopped < step <= stopped + METRICS_LAG_STEPS}
    assert min(both) <= stopped < max(both)
    for step in both:
        # float32 sums in another order, through as many steps.
        np.testing.assert_allclose(here[step], there[step], rtol=1e-4)
    mine, theirs = (
        named_leaves(load_trained_model(workdir, checkpoint="latest", mesh="single").trainable)
        for workdir in (together, alone)
    )
    for name, leaf in mine.items():
        np.testing.assert_allclose(leaf, theirs[name], rtol=1e-3, atol=1e-4, err_msg=name)

    infer = ("--split=val", "--checkpoint=latest", f"--workdir={together}")
    (first, _), (second, _) = wait_for_all(start("launch/infer.py", *infer, f"--out={tmp_path / 'together.jsonl'}"))
    assert f"{VAL} queries answered" in first
    assert "answered" not in second
    run_script("infer", *infer, f"--out={tmp_path / 'alone.jsonl'}")
    answers, expected = read(tmp_path / "together.jsonl"), read(tmp_path / "alone.jsonl")
    assert [answer["qid"] for answer in answers] == [f"q{i}" for i in range(VAL)]
    for answer, other in zip(answers, expected, strict=True):
        assert answer["raw"] == other["raw"]
        np.testing.assert_allclose(answer["pred_relevant_windows"], other["pred_relevant_windows"], atol=1e-4)


def seconds_until_end(waited, hosts):
    """Wait until some hosts have ended by themselves, kill the others, and return how long it took."""
    begin = time.monotonic()
    try:
        for host in waited:
            host.wait(timeout=HEARTBEAT_TIMEOUT_S + 120)
        return time.monotonic() - begin
    finally:
        for host in hosts:
            host.kill()
            host.wait()


ONE_HOST_FAILS = """
import sys
from absl import flags
from calce_jax.commands.flags.hosts import HostFlags
from calce_jax.commands.runner import end_abruptly, exit_codes

values = flags.FlagValues()
hosts = HostFlags(values)
failing = int(sys.argv.pop(1))
values(sys.argv)
with end_abruptly(), exit_codes("test"), hosts.joined():
    import jax
    from calce_jax.distributed.multihost import barrier

    barrier("both are there")
    if jax.process_index() == failing:
        raise OSError("no room in this folder")
    barrier("the other waits here")
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_host_ends_all(failing):
    """Such as a full disk, which the first host alone writes to."""
    hosts = start("-c", ONE_HOST_FAILS, str(failing))
    took = seconds_until_end(hosts, hosts)
    errors = [host.read_output()[1] for host in hosts]
    assert took < HEARTBEAT_TIMEOUT_S + 60, errors
    assert "Error: no room in this folder" in errors[failing]
    assert 0 not in [host.returncode for host in hosts]


@pytest.mark.release
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_host_ends_the_other_with_the_reason(lost, prepared, tmp_path):
    many = ("--config.schedule.epochs=1000", "--config.loop.eval_every=3", f"--config.data.directory={prepared}")
    hosts = start("launch/train.py", *CONFIG, *many, f"--workdir={tmp_path / 'run'}")
    wait_for_checkpoint(tmp_path / "run", hosts)
    hosts[lost].kill()
    other = hosts[1 - lost]
    took = seconds_until_end([other], hosts)
    _, errors = [host.read_output() for host in hosts][1 - lost]
    assert took < HEARTBEAT_TIMEOUT_S, errors[-3000:]
    assert other.returncode != 0
    # If the first host is lost, or a save waits for the lost one, JAX mostly ends the process itself.
    assert "another task died" in errors or "another host has ended" in errors, errors[-3000:]
    assert "remove it" not in errors, "the checkpoint is whole"
    assert [line for line in errors.splitlines() if line.startswith("Error: ")] == [
        line for line in errors.splitlines() if line.endswith("run the same command on every host again")
    ]

    # From the last checkpoint, nothing being locked or damaged.
    before = checkpoint_steps(tmp_path / "run")[-1]
    hosts = start("launch/train.py", *CONFIG, *many, f"--workdir={tmp_path / 'run'}")
    while checkpoint_steps(tmp_path / "run")[-1] == before and None in [host.poll() for host in hosts]:
        time.sleep(0.1)
    hosts[0].send_signal(signal.SIGTERM)
    wait_for_all(hosts, code=128 + signal.SIGTERM)
    assert checkpoint_steps(tmp_path / "run")[-1] > before
