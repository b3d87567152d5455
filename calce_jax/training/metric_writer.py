"""CLU's metric writer for TensorBoard, without TensorFlow.

`clu.metric_writers` imports TensorFlow at module level, only for its own summary writer. This module replaces that
writer by one of tensorboardX before the import, so no other module may import `clu.metric_writers`.
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
    # The name must exist while clu is imported; the class itself needs clu's interface and is set below.
    sys.modules[_CLU_SUMMARY_WRITER] = types.ModuleType(_CLU_SUMMARY_WRITER)
    sys.modules[_CLU_SUMMARY_WRITER].SummaryWriter = None  # pyright: ignore[reportAttributeAccessIssue]

from clu import metric_writers  # noqa: E402

MetricWriter = metric_writers.MetricWriter


class TensorBoardWriter(MetricWriter):
    """Writes TensorBoard event files; names such as "train/loss" are grouped by the part before the slash.

    Args:
      folder: of the event files.
    """

    def __init__(self, folder: Path):
        # tensorboardX imports torch if it is installed, which takes seconds; only writers should wait for it.
        from tensorboardX import SummaryWriter  # noqa: PLC0415
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415  # pyright: ignore

        self._events, self._summary = SummaryWriter(str(folder)), Summary

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write numbers, by name."""
        # `add_scalar` would turn the "@" of "R1@0.5" into "_".
        summary = self._summary(value=[{"tag": tag, "simple_value": float(value)} for tag, value in scalars.items()])
        assert self._events.file_writer is not None
        self._events.file_writer.add_summary(summary, step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Write uint8 RGB images, by name; each is (H, W, 3), or (N, H, W, 3)."""
        for name, image in images.items():
            layout = "NHWC" if np.ndim(image) == 4 else "HWC"
            write = self._events.add_images if layout == "NHWC" else self._events.add_image
            write(name, np.asarray(image), step, dataformats=layout)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write Markdown texts, by name."""
        for name, text in texts.items():
            self._events.add_text(name, text, step)

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Write histograms of the entries of arrays, by name."""
        for name, array in arrays.items():
            self._events.add_histogram(name, np.asarray(array), step, max_bins=(num_buckets or {}).get(name))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the config of the run as a table of fields and values."""
        rows = [f"| {name} | {value} |" for name, value in hparams.items()]
        self._events.add_text("config", "\n".join(["| field | value |", "|---|---|", *rows]), 0)

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Raise NotImplementedError: raw summaries need TensorFlow."""
        raise NotImplementedError("raw summaries need TensorFlow; write scalars, images or texts")

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Raise NotImplementedError: videos are written as images of their frames."""
        raise NotImplementedError("videos are not written; write their frames as images")

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Raise NotImplementedError: no run produces audio."""
        raise NotImplementedError("audio is not written")

    def flush(self) -> None:
        """Flush event files to disk."""
        self._events.flush()

    def close(self) -> None:
        """Flush and close the event files."""
        self._events.close()


metric_writers.SummaryWriter = TensorBoardWriter  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def open_metric_writer(folder: Path) -> Iterator[MetricWriter]:
    """Yield a writer into `folder` that works in a thread of its own; when the context ends, all is on disk.

    Of several hosts only the first writes; on the others the writer does nothing.
    """
    writer = metric_writers.AsyncWriter(TensorBoardWriter(folder)) if is_primary() else metric_writers.MultiWriter([])
    try:
        yield writer
    finally:
        writer.close()
