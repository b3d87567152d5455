"""Times as people read and write them: minutes and seconds of a player."""

import re

from calce_jax.errors import UserError

Seconds = int | float

_PATTERN = re.compile(r"(?:(?:(\d+):)?(\d{1,2}):)?(\d+(?:[.,]\d+)?)\s*s?")


class TimeError(UserError):
    """A text is not a time."""


def format_time(second: Seconds) -> str:
    """Return a time in seconds as text: "00:07.5", "02:07.0", "1:02:07.0"; rounded to tenths."""
    tenths = round(float(second) * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    clock = f"{minutes:02d}:{tenths // 10:02d}.{tenths % 10}"
    return f"{hours}:{clock}" if hours else clock


def parse_time(text: str) -> float:
    """Return the seconds of a text such as "66", "66.5", "1:06" or "1:02:07.5".

    Raises:
      TimeError: the text is something else, or its minutes or seconds exceed 59 behind a colon.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match:
        hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in match.groups())
        has_minutes, has_hours = match[2] is not None, match[1] is not None
        if not (has_minutes and seconds >= 60) and not (has_hours and minutes >= 60):
            return hours * 3600 + minutes * 60 + seconds
    raise TimeError(f"{text[:40]!r} is no time", "write seconds, m:ss or h:mm:ss, such as 66.5, 1:06 or 1:02:07")
