"""CLU's metric writer for TensorBoard, without TensorFlow.

`clu.metric_writers` imports TensorFlow at module level, for its own summary writer alone. Here tensorboardX takes that
writer's place before the import; this is the one module that may import `clu.metric_writers`.
"""

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calce_jax.distributed.multihost import is_primary

_CLU_SUMMARY_WRITER = "clu.metric_writers.summary_writer"
if _CLU_SUMMARY_WRITER not in sys.modules:
    # The name has to exist while clu is imported; the class below needs clu's interface, so it follows.
    sys.modules[_CLU_SUMMARY_WRITER] = types.ModuleType(_CLU_SUMMARY_WRITER)
    sys.modules[_CLU_SUMMARY_WRITER].SummaryWriter = None  # pyright: ignore[reportAttributeAccessIssue]

from clu import metric_writers  # noqa: E402

MetricWriter = metric_writers.MetricWriter


class TensorBoardWriter(MetricWriter):
    """Writes event files; names such as "train/loss" are grouped by what stands before the slash."""

    def __init__(self, folder: Path):
        # It imports torch where there is one: seconds that only a run that writes has to wait.
        from tensorboardX import SummaryWriter  # noqa: PLC0415
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        self._events, self._summary = SummaryWriter(str(folder)), Summary

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write numbers."""
        # Not by `add_scalar`, which turns the "@" of "R1@0.5" into "_".
        summary = self._summary(value=[{"tag": tag, "simple_value": float(value)} for tag, value in scalars.items()])
        assert self._events.file_writer is not None
        self._events.file_writer.add_summary(summary, step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Write uint8 RGB images of shape (H, W, 3), or several of one size as (N, H, W, 3)."""
        for name, image in images.items():
            layout = "NHWC" if np.ndim(image) == 4 else "HWC"
            write = self._events.add_images if layout == "NHWC" else self._events.add_image
            write(name, np.asarray(image), step, dataformats=layout)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write text; TensorBoard reads it as Markdown."""
        for name, text in texts.items():
            self._events.add_text(name, text, step)

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Write how the entries of arrays are distributed."""
        for name, array in arrays.items():
            self._events.add_histogram(name, np.asarray(array), step, max_bins=(num_buckets or {}).get(name))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write what describes the run, as a table of fields."""
        rows = [f"| {name} | {value} |" for name, value in hparams.items()]
        self._events.add_text("config", "\n".join(["| field | value |", "|---|---|", *rows]), 0)

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Refuse: raw summaries are TensorFlow's."""
        raise NotImplementedError("raw summaries need TensorFlow; write scalars, images or texts")

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Refuse: the runs here show frames as images."""
        raise NotImplementedError("videos are shown as images of their frames")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Refuse: nothing here makes sound."""
        raise NotImplementedError("there is no audio to write")

    def flush(self) -> None:
        """Bring what was written to disk."""
        self._events.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self._events.close()


metric_writers.SummaryWriter = TensorBoardWriter  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def open_metric_writer(folder: Path) -> Iterator[MetricWriter]:
    """Give a writer into `folder` that works in a thread of its own; on leaving, all is on disk.

    Of several hosts only the first writes.
    """
    writer = metric_writers.AsyncWriter(TensorBoardWriter(folder)) if is_primary() else metric_writers.MultiWriter([])
    try:
        yield writer
    finally:
        writer.close()
