"""Rows of JSON files, read with all their faults: what annotations and predictions have in common.

A file holds either one JSON list or one row a line. Errors name the file, the row and the remedy.
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from calce_jax.errors import UserError

QVHIGHLIGHTS_PREFIX = "QVHighlight_"
# A file can be wrong in every line; a longer list is of no use.
MAX_SHOWN_FAULTS = 20
MAX_NAMED_QIDS = 5


def normalise_qid(qid: str | int) -> str:
    """Return the form in which ids of queries are compared: "QVHighlight_2579", "2579" and 2579 give "2579"."""
    return str(qid).removeprefix(QVHIGHLIGHTS_PREFIX)


def name_queries(message: str, qids: Sequence[str | int]) -> str:
    """Return "3 MESSAGE: 1, 2, 7" with the first ids; "" for none."""
    more = ", ..." if len(qids) > MAX_NAMED_QIDS else ""
    return f"{len(qids)} {message}: {', '.join(map(str, qids[:MAX_NAMED_QIDS]))}{more}" if qids else ""


def read_rows(
    text: str, faults: list[str], parse_line: Callable[[int, str], Any] = lambda _, line: parse_json_line(line)
) -> list[tuple[str, Any]]:
    r"""Return each row of a file with its location, "row 3" of a list or "line 3"; blank lines are skipped.

    Lines end with "\n" or "\r\n" alone: other separators, such as U+2028, may stand inside a JSON string.

    Args:
      text: contents of the file.
      faults: gets "LOCATION: what is wrong; remedy" for every line that cannot be parsed.
      parse_line: returns the row of a line, given its number (from 1) and the line; raises ValueError.
    """
    if text.lstrip().startswith("["):
        try:
            rows = [(f"row {number}", row) for number, row in enumerate(json.loads(text), 1)]
        except (ValueError, RecursionError) as error:
            line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
            faults.append(f"line {line}: {_describe_json_error(error)}; download or write the file again")
            return []
        for location, row in rows if may_have_surrogates(text) else ():
            try:
                check_characters(row)
            except ValueError as error:
                faults.append(f"{location}: {error}")
        return rows
    if entries := _entries_of_object(text):
        faults.append(
            f"it is one JSON object with {', '.join(map(repr, entries[:3]))}{', ...' if len(entries) > 3 else ''}, in "
            "no format that is known; give a JSON list, or one object a line"
        )
        return []
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", parse_line(number, line.removesuffix("\r"))))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    return rows


def _entries_of_object(text: str) -> list[str]:
    """Return the names in a JSON object that is spread over several lines; none for any other text."""
    if not text.lstrip().startswith("{") or "\n" not in text.strip():
        return []
    try:
        return list(json.loads(text))
    except (ValueError, RecursionError):
        return []  # JSON lines, which end with the first object


def foreign_rows_fault(rows: Sequence[tuple[str, Any]], known: Collection[str]) -> str | None:
    """Return a fault if no row has any of the known fields; each row would have faults for all of them.

    Args:
      rows: (location, parsed JSON value).
      known: names of fields.
    """
    fields = [list(row) for _, row in rows if isinstance(row, dict)]
    if not fields or len(fields) < len(rows) or any(set(row) & set(known) for row in fields):
        return None
    found = ", ".join(map(repr, fields[0][:5])) or "no field"
    return (
        f"{rows[0][0]}: it has {found}, and no row of the file a field that is known; give a file in one of the "
        "formats that docs/own_data.md lists"
    )


def parse_json_line(line: str) -> Any:
    """Return the JSON value of a line.

    Raises:
      ValueError: it is not JSON; the message says why, and the remedy.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_describe_json_error(error)}; give one object a line") from None
    if may_have_surrogates(line):
        check_characters(row)
    return row


def may_have_surrogates(text: str) -> bool:
    r"""Whether a JSON text has an escape such as "\ud83d", half of a character, or another one of the same range."""
    return "\\ud" in text.lower()


def check_characters(row: Any) -> None:
    """Check that all text of a parsed JSON value can be written: JSON can escape one half of a character alone.

    Raises:
      ValueError: it cannot; the message says which half, and the remedy.
    """
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start : error.start + 1])
        raise ValueError(f"the text holds {half}, which is half of a character; fix the text") from None


def _describe_json_error(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON ({error.msg})"
    return "not JSON (nested too deeply)" if isinstance(error, RecursionError) else "a number has too many digits"


def raise_faults(path: str | Path, faults: Sequence[str], error_type: type[UserError]) -> None:
    """Raise one error that lists the faults of a file, if there are any.

    Raises:
      UserError: `error_type`, with a line for each fault, at most `MAX_SHOWN_FAULTS` of them.
    """
    if faults:
        raise error_type("\n".join(first_faults([f"{path}, {fault}" for fault in faults], path)))


def first_faults(faults: Sequence[str], source: str | Path) -> list[str]:
    """Return at most `MAX_SHOWN_FAULTS` faults of a file or split, and a line that says how many more there are."""
    more = len(faults) - MAX_SHOWN_FAULTS
    return [*faults[:MAX_SHOWN_FAULTS], *([f"{source}: and {more} more"] if more > 0 else [])]


def is_finite_number(value: Any) -> TypeGuard[int | float]:
    """Whether a parsed JSON value is a number that float64 can hold; true and false are none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of more than 308 digits
        return False
