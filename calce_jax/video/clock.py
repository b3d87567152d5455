"""The clock of a player: seconds from the start of the file, for every stream alike, whatever its timestamps are.

Timestamps begin at any number, and later in one stream than in another where a file was cut without encoding it again.
They restart where two recordings were joined. A raw stream has none.
"""

from math import inf
from typing import Any

from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

# A picture that begins less than this after the file begins with it: the difference is the run-in of an audio codec,
# 1024 samples of AAC, which are 0.128 s of a telephone's 8 kHz.
MIN_LATE_START_S = 0.15
# Timestamps that fall by more than this have restarted; less is a disorder of damaged files.
MIN_RESTART_S = 0.5
# A greater jump ahead is not a gap but a broken clock; broadcasts, which are joined as they are, have it more often.
MAX_GAP_S, MAX_BROADCAST_GAP_S = 600.0, 60.0
# FFmpeg's AVFMT_TS_DISCONT: a format of broadcasts, whose timestamps begin anywhere and may jump.
_DISCONTINUOUS = 0x200


class PlayerClock:
    """The seconds of one stream, of its packets or of its frames.

    Args:
      container: the file.
      stream: of the file.
      sought: whether reading begins in the middle of the file: then any first timestamp is right.
    """

    def __init__(self, container: InputContainer, stream: Stream, *, sought: bool = False) -> None:
        self._shift = -clock_origin(container)
        self._max_gap = MAX_BROADCAST_GAP_S if has_broken_clock(container) else MAX_GAP_S
        self._time_base: Any = stream.time_base
        self._last = -inf
        self._end: float | None = None if sought else 0.0

    def seconds(self, timestamp: int | None, duration: float) -> float:
        """Return the time at which a packet or frame begins.

        Args:
          timestamp: its own, in the stream's time base, in an order that rises; None if it has none: then it begins
            where the one before ends.
          duration: its length in seconds.
        """
        end = 0.0 if self._end is None else self._end
        if timestamp is None or self._time_base is None:
            second = end
        else:
            second = float(timestamp * self._time_base) + self._shift
            if second < self._last - MIN_RESTART_S or (self._end is not None and second - end > self._max_gap):
                self._shift += end - second
                second = end
        self._last, self._end = second, max(end, second + duration)
        return second


def clock_origin(container: InputContainer) -> float:
    """Return the timestamp, in seconds, at which a player's clock shows 0."""
    starts = [
        (isinstance(stream, VideoStream), float(stream.start_time * stream.time_base))
        for stream in (*container.streams.video, *container.streams.audio)
        if stream.start_time is not None
        and stream.time_base is not None
        and not stream.disposition & Disposition.attached_pic
    ]
    if not starts:
        return 0.0
    first = min(start for _, start in starts)
    if abs(first) < MIN_LATE_START_S and not has_broken_clock(container):
        first = 0.0
    pictures = [start for is_video, start in starts if is_video]
    return pictures[0] if pictures and pictures[0] - first < MIN_LATE_START_S else first


def has_broken_clock(container: InputContainer) -> bool:
    """Whether the format is one of broadcasts: no header gives a duration, and a seek may land anywhere."""
    return bool(int(container.format.flags) & _DISCONTINUOUS)
