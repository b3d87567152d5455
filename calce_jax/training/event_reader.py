"""Read the numbers that a run wrote for TensorBoard."""

import struct
from collections.abc import Iterator
from pathlib import Path

# A record: its length and a checksum of that, the event, a checksum of the event.
_HEADER, _CHECKSUM_BYTES = struct.Struct("<QI"), 4


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the scalars of a run by name and step, in the order of steps.

    What an interrupted process wrote after the checkpoint that was resumed is left out, as TensorBoard does; so is a
    record that a process did not finish, and what follows a damaged one in its file. Checksums are not compared.

    Args:
      folder: the run's workdir; without event files nothing is returned.

    Raises:
      OSError: a file cannot be read.
    """
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415  # pyright: ignore

    scalars: dict[str, dict[int, float]] = {}
    # Names begin with the second.
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in _records(path.read_bytes()):
            try:
                event = Event.FromString(record)
            except DecodeError:
                break
            if event.session_log.status == SessionLog.START:
                scalars = {
                    name: {step: value for step, value in points.items() if step < event.step}
                    for name, points in scalars.items()
                }
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return {name: dict(sorted(points.items())) for name, points in scalars.items() if points}


def _records(content: bytes) -> Iterator[bytes]:
    start = 0
    while start + _HEADER.size <= len(content):
        length, _ = _HEADER.unpack_from(content, start)
        end = start + _HEADER.size + length + _CHECKSUM_BYTES
        if end > len(content):
            return
        yield content[start + _HEADER.size : end - _CHECKSUM_BYTES]
        start = end
