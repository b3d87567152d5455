"""Read the numbers that a run wrote for TensorBoard."""

import struct
from collections.abc import Iterator
from pathlib import Path

# A record: its length and a checksum of that, the event, a checksum of the event.
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CHECKSUM.size


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return the scalars of a run by name and step, in the order of steps.

    What an interrupted process wrote after the checkpoint that was resumed is left out, as TensorBoard does; so is a
    record that a process did not finish, and what follows a damaged one in its file.

    Args:
      folder: the run's workdir; without event files nothing is returned.

    Raises:
      OSError: a file cannot be read.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415  # pyright: ignore

    scalars: dict[str, dict[int, float]] = {}
    # Names begin with the second.
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
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
    from tensorboardX.record_writer import masked_crc32c  # noqa: PLC0415

    start = 0
    while start + _HEADER_BYTES <= len(content):
        (length,) = _LENGTH.unpack_from(content, start)
        end = start + _HEADER_BYTES + length
        if end + _CHECKSUM.size > len(content):
            return
        event = content[start + _HEADER_BYTES : end]
        if _CHECKSUM.unpack_from(content, end)[0] != masked_crc32c(event):
            return
        yield event
        start = end + _CHECKSUM.size
