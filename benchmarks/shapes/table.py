"""The results of the benchmark as Markdown tables: means over seeds, with their standard errors."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes.rows import Row
from data.shapes.bench.queries import KINDS

Result = dict[str, Any]
ABSENT_METRICS = ("AUROC", "rejected@5%", "answered_none", "present_answered_none")


def format_tables(out: Path, rows: Sequence[Row], seeds: int) -> str:
    """Return three tables: all queries that happen, R1@0.5 by kind, absent queries and cost; of rows with results."""
    results = {"before training": _read([out / "base.json"])}
    results |= {row.title: _read([out / f"seed{seed}" / f"{row.name}.json" for seed in range(seeds)]) for row in rows}
    results = {title: found for title, found in results.items() if found}
    kinds = [kind for kind in KINDS if any(kind in r["by_kind"] for found in results.values() for r in found)]
    tables = [
        _table(results, {name: lambda r, name=name: r["all"][name] for name in ("R1@0.5", "R1@0.7", "mIoU", "mAP")}),
        _table(results, {kind: lambda r, kind=kind: r["by_kind"].get(kind, {}).get("R1@0.5") for kind in kinds}),
        _table(
            results,
            {name: lambda r, name=name: r["presence"].get(name) for name in ABSENT_METRICS}
            | {"training, s of a core": lambda r: r.get("train_s"), "predicting, s": lambda r: r.get("predict_s")},
        ),
    ]
    return "\n\n".join(tables)


def _read(paths: Sequence[Path]) -> list[Result]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def _table(results: dict[str, list[Result]], columns: dict[str, Callable[[Result], float | None]]) -> str:
    lines = ["| | seeds | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for title, found in results.items():
        cells = [_cell([value for r in found if (value := get(r)) is not None]) for get in columns.values()]
        lines.append(f"| {title} | {len(found)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    """Return the mean and its standard error, which one value does not have."""
    if not values:
        return ""
    mean = f"{np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1) / len(values) ** 0.5:.1f}"
