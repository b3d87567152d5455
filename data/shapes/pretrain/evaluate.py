"""What the lessons came to: a model answers queries about scenes that it was not taught with, in both stages."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, UInt8
from transformers import PreTrainedTokenizerBase

from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce import Calce, Reading, Selection, unit_rows
from calce_jax.moments.windows import iou, parse_windows
from calce_jax.text.prompt import answer_text
from data.shapes.batches import Asked, Pool
from data.shapes.pretrain.pointing_loss import Task
from data.shapes.pretrain.text_stage import truth_of

ROWS = 64  # whose key frames are chosen together


@struct.dataclass
class Seen:
    """What was made of a pool once: query tokens of every frame, and what is read for every query in each stage."""

    queries: np.ndarray  # float16 (scenes, T, Q, W)
    readings: tuple[Reading, Reading]  # numpy; the leading axis is that of `Pool.asked`


def look_through(model: Calce, pool: Pool, selections: Mapping[int, Selection]) -> Seen:
    """See every frame, choose for every query."""
    both = nnx.jit(_looked_at)
    side = model.config.vit.image_size
    looks = [jax.device_get(both(model, jnp.asarray(pool.drawn(i, side)[None]))) for i in range(len(pool.scenes))]
    means, queries = (np.concatenate(each) for each in zip(*looks, strict=True))
    features = (means[:, ::2], np.asarray(unit_rows(jnp.asarray(queries))))
    first, second = (_readings(model, pool, features[stage - 1], stage, selections[stage]) for stage in (1, 2))
    return Seen(queries=queries, readings=(first, second))


def _looked_at(model: Calce, frames: UInt8[Array, "B T Y X 3"]) -> tuple[Array, Array]:
    seen = model.see(frames)
    return model.means(seen), model.queries(seen).astype(jnp.float16)


def _readings(model: Calce, pool: Pool, features: np.ndarray, stage: int, selection: Selection) -> Reading:
    choose = nnx.jit(lambda model, features, rows: model.choose(features, rows, selection))
    found = []
    for first in range(0, len(pool.asked), ROWS):
        # The last ones are filled up, so that all are of one shape.
        rows = (pool.asked[first : first + ROWS] * ROWS)[:ROWS]
        found.append(jax.device_get(choose(model, features[[row.scene for row in rows]], pool.batch(rows, stage))))
    return jax.tree.map(lambda *each: np.concatenate(each)[: len(pool.asked)], *found)


def asked_about(pool: Pool, seen: Seen, numbers: np.ndarray, stage: int) -> tuple[np.ndarray, Task]:
    """Return the query tokens of the frames in the prompts of these rows, and the task."""
    rows = [pool.asked[i] for i in numbers]
    reading = jax.tree.map(lambda a: a[numbers], seen.readings[stage - 1])
    frames = reading.plan.index * (2 if stage == 1 else 1)
    queries = seen.queries[np.array([row.scene for row in rows])[:, None], frames]
    return queries, Task(pool.batch(rows, stage), reading, truth_of(pool, rows, stage))


def judge(
    model: Calce, t5: PreTrainedTokenizerBase, pool: Pool, seen: Seen, *, stage: int, length: int, batch: int = 16
) -> dict[str, float]:
    """Return the share of queries (percent) whose first answered window overlaps a true one by half and by 0.7.

    Answers are greedy; queries that fill no batch are left out.
    """
    overlaps: dict[str, list[float]] = {}
    for first in range(0, len(pool.asked) - batch + 1, batch):
        queries, task = asked_about(pool, seen, np.arange(first, first + batch), stage)
        written = jax.device_get(_answer(model, jnp.asarray(queries), task, length))
        for row, ids in zip(pool.asked[first : first + batch], written, strict=True):
            overlaps.setdefault(row.query.kind, []).append(_overlap(pool, row, answer_text(t5, ids)))
    every = [value for values in overlaps.values() for value in values]
    scores = {f"R1@{bar}": _share(every, bar) for bar in (0.5, 0.7)}
    return scores | {f"R1@0.5 {kind}": _share(values, 0.5) for kind, values in sorted(overlaps.items())}


@partial(nnx.jit, static_argnums=3)
def _answer(model: Calce, queries: Array, task: Task, length: int) -> Array:
    x, mask = model.lay_out(model.described(queries.astype(jnp.float32)), task.rows, task.reading, length)
    return beam_search(model.t5, model.t5.encode(x, mask), mask, beams=1, length=32).tokens[:, 0]


def _share(values: list[float], bar: float) -> float:
    return round(100 * float(np.mean([value >= bar for value in values])), 1)


def _overlap(pool: Pool, row: Asked, text: str) -> float:
    windows = parse_windows(text, pool.scenes[row.scene].duration).windows
    return max(iou(windows[0], list(true)) for true in row.query.windows) if windows else 0.0
