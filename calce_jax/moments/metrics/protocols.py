"""The protocols by name, and their results as a table."""

from collections.abc import Callable, Sequence
from typing import Any

from calce_jax.metrics import official, reference
from calce_jax.metrics.cases import Case

PROTOCOLS: dict[str, Callable[[Sequence[Case]], dict[str, Any]]] = {
    "reference": reference.score,
    "official": official.score,
}
HEADLINES = ("R1@0.5", "R1@0.7", "R1_avg", "mIoU", "mAP@0.5", "mAP@0.75", "mAP")


def evaluate(cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Return {"reference": {...}, "official": {...}}, in percent; a query without a predicted window is a miss.

    Raises:
      ValueError: there is nothing to score.
    """
    if not cases:
        raise ValueError("no query to score: no annotated query has true windows; give annotations that have them")
    return {name: score(cases) for name, score in PROTOCOLS.items()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return rows of results (a name and its scores in percent) as aligned text under one heading."""
    width = max(len(name) for name in results)
    lines = [" " * width + "".join(f"{key:>10}" for key in HEADLINES)]
    for name, scores in results.items():
        lines.append(f"{name:<{width}}" + "".join(f"{scores[key]:10.2f}" for key in HEADLINES))
    return "\n".join(lines)
