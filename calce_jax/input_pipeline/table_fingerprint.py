"""What a run trains on, in a few numbers, so that a resumed run notices other tables."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from calce_jax.config import Stage
from calce_jax.input_pipeline.example import Query

Fingerprint = dict[str, Any]


def table_fingerprint(queries: Sequence[Query], stage: Stage, *, with_facts: bool = False) -> Fingerprint:
    """Return the fingerprint of a split: JSON values that are equal for equal queries in the same order.

    Args:
      queries: all of the split.
      stage: stage 1 does not read the windows that `calce merge` adds to the same tables.
      with_facts: whether the facts of the queries are used.
    """
    rows = [
        (
            *(q.qid, q.video, q.query, q.items, q.duration, q.windows.tolist()),
            _stage1_windows(q) if stage == 2 else None,
            # Queries of earlier versions keep their hash.
            *(["absent"] if q.is_absent else []),
            *([q.fact, q.facts] if with_facts else []),
        )
        for q in queries
    ]
    return {
        "queries": len(rows),
        "videos": len({query.video for query in queries}),
        "without_items": sum(not query.items for query in queries),
        "sha256": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }


def table_changes(before: Fingerprint, now: Fingerprint) -> str:
    """Return what differs between two fingerprints of a split in words; "" if nothing does."""
    counts = [
        f"{before[name]} {name} then, {now[name]} now" for name in ("queries", "videos") if before[name] != now[name]
    ]
    if not counts and before["sha256"] != now["sha256"]:
        return "other sentences, items, durations, windows, or another order"
    return ", ".join(counts)


def has_items(fingerprint: Fingerprint) -> bool:
    """Return whether any query of a split has items; True where that is not known.

    Tables of earlier versions, and those that were prepared under "reference", may have none.
    """
    return fingerprint.get("without_items", 0) < fingerprint.get("queries", 1)


def _stage1_windows(query: Query) -> list[list[float]] | None:
    return None if query.stage1_windows is None else query.stage1_windows.tolist()
