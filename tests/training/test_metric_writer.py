import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calce_jax.training.metric_writer import MetricsError, TensorBoardWriter, open_metric_writer


def test_tensorboard_reads_what_was_written(tmp_path):
    strip = np.zeros((4, 6, 3), np.uint8)
    with open_metric_writer(tmp_path) as writer:
        writer.write_hparams({"stage": 1, "schedule.peak": 3e-4})
        for step in (10, 20):
            writer.write_scalars(step, {"train/loss": 1.0 / step, "eval/R1@0.5": np.float32(step)})
        writer.write_images(20, {"samples/q1": strip, "samples/q2": np.stack([strip, strip])})
        writer.write_texts(20, {"samples/q1_text": "[[1, 2]]"})
        writer.write_histograms(20, {"windows/length": np.arange(5.0)})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/R1@0.5")] == [(10, 10.0), (20, 20.0)]
    assert events.Scalars("train/loss")[1].value == np.float32(0.05)
    image = events.Images("samples/q1")[0]
    assert (image.step, image.height, image.width) == (20, 4, 6)
    tags = events.Tags()
    assert "samples/q2" in tags["images"]
    assert tags["histograms"] == ["windows/length"]
    assert {"samples/q1_text/text_summary", "config/text_summary"} <= set(tags["tensors"])


def test_what_an_interrupted_process_wrote_after_its_checkpoint_is_not_shown_twice(tmp_path):
    for steps, purge_step in ((range(1, 9), 1), (range(5, 13), 5)):
        with open_metric_writer(tmp_path, purge_step) as writer:
            for step in steps:
                writer.write_scalars(step, {"train/loss": step / purge_step})
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        (step, pytest.approx(step if step < 5 else step / 5)) for step in range(1, 13)
    ]


@pytest.fixture
def full_disk():
    """No file may grow beyond 20 kB, as if the disk were full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, ignored)


def close_fails(writer):
    writer._file.close()
    raise MetricsError("cannot be closed")


def test_a_full_disk_is_an_error_with_a_remedy_and_nothing_waits(tmp_path, full_disk, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)

    def write(folder, images, error=None):
        with open_metric_writer(folder) as writer:
            for step in range(images):
                writer.write_images(step, {"samples/q1": noise})
            if error:
                raise error

    for images in (1, 100):  # at the end, and in between
        with pytest.raises(MetricsError, match=r"cannot write metrics to .* \(File too large\); make room and run"):
            write(tmp_path / str(images), images)
    monkeypatch.setattr(TensorBoardWriter, "close", close_fails)
    with pytest.raises(KeyError):
        write(tmp_path / "other", 0, KeyError("the error of the body"))
    (tmp_path / "file").touch()
    with pytest.raises(MetricsError, match=r"cannot write metrics to .*file \(.*\); make room"):
        open_metric_writer(tmp_path / "file").__enter__()


def test_tensorflow_is_not_imported():
    check = "import sys, calce_jax.training.metric_writer; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
