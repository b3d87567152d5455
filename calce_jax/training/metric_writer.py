"""CLU's metric writer for TensorBoard, without TensorFlow.

`clu.metric_writers` imports TensorFlow at module level, only for its own summary writer. This module replaces that
writer by one of tensorboardX before the import, so no other module may import `clu.metric_writers`.
"""

import sys
import time
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from calce_jax.distributed.multihost import is_primary
from calce_jax.errors import UserError

_CLU_SUMMARY_WRITER = "clu.metric_writers.summary_writer"
if _CLU_SUMMARY_WRITER not in sys.modules:
    # The name must exist while clu is imported; the class itself needs clu's interface and is set below.
    sys.modules[_CLU_SUMMARY_WRITER] = types.ModuleType(_CLU_SUMMARY_WRITER)
    sys.modules[_CLU_SUMMARY_WRITER].SummaryWriter = None  # pyright: ignore[reportAttributeAccessIssue]

from clu import metric_writers  # noqa: E402

MetricWriter = metric_writers.MetricWriter


class MetricsError(UserError):
    """Metrics cannot be written; names the folder and the remedy."""


class TensorBoardWriter(MetricWriter):
    """Writes TensorBoard event files; names such as "eval/mIoU" are grouped by the part before the slash.

    Events are written by the thread that calls, so errors are raised there. tensorboardX's own `SummaryWriter` leaves
    them to a thread; where that dies, as on a full disk, the others wait for it for ever.

    Args:
      folder: of the event files; created if missing.
      purge_step: TensorBoard does not show what earlier event files of the folder hold from this step on.

    Raises:
      MetricsError: the folder cannot be written; of any method.
    """

    def __init__(self, folder: Path, purge_step: int | None = None):
        # tensorboardX imports torch if it is installed, which takes seconds; only writers should wait for it.
        from tensorboardX import summary  # noqa: PLC0415
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415  # pyright: ignore
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415  # pyright: ignore

        self._folder, self._make, self._event, self._summary = folder, summary, Event, Summary
        with self._naming_errors():
            folder.mkdir(parents=True, exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names, which begin with the second.
            self._file = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
            if purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self._file.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write numbers, by name."""
        # `summary.scalar` would turn the "@" of "R1@0.5" into "_".
        values = [{"tag": tag, "simple_value": float(value)} for tag, value in scalars.items()]
        self._write(step, self._summary(value=values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Write uint8 RGB images, by name; each is (H, W, 3), or (N, H, W, 3)."""
        for name, image in images.items():
            layout = "NHWC" if np.ndim(image) == 4 else "HWC"
            self._write(step, self._make.image(name, np.asarray(image), dataformats=layout))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Write Markdown texts, by name."""
        for name, text in texts.items():
            self._write(step, self._make.text(name, text))

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Write histograms of the entries of arrays, by name."""
        for name, array in arrays.items():
            max_bins = (num_buckets or {}).get(name)
            self._write(step, self._make.histogram(name, np.asarray(array), "auto", max_bins=max_bins))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Write the config of the run as a table of fields and values."""
        rows = [f"| {name} | {value} |" for name, value in hparams.items()]
        self.write_texts(0, {"config": "\n".join(["| field | value |", "|---|---|", *rows])})

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
        """Flush the event file to disk."""
        with self._naming_errors():
            self._file.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        with self._naming_errors():
            self._file.close()

    def _write(self, step: int, summary: Any) -> None:
        with self._naming_errors():
            self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MetricsError(
                f"cannot write metrics to {self._folder} ({error.strerror or error})",
                "make room and run the same command again; it goes on from its last checkpoint",
            ) from error


metric_writers.SummaryWriter = TensorBoardWriter  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def open_metric_writer(folder: Path, purge_step: int | None = None) -> Iterator[MetricWriter]:
    """Yield a writer into `folder`; when the context ends, all is on disk.

    Of several hosts only the first writes; on the others the writer does nothing.

    Args:
      folder: of the event files.
      purge_step: the run's next step. Events from there on, which an interrupted process wrote, are not shown.

    Raises:
      MetricsError: the folder cannot be written.
    """
    writer = TensorBoardWriter(folder, purge_step) if is_primary() else metric_writers.MultiWriter([])
    try:
        yield writer
    except BaseException:
        # The error of the body is the one to report.
        with suppress(MetricsError):
            writer.close()
        raise
    writer.close()
