import subprocess
import sys

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from calce_jax.training.metric_writer import open_metric_writer


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


def test_tensorflow_is_not_imported():
    check = "import sys, calce_jax.training.metric_writer; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
