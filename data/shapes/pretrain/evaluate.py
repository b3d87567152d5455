"""Evaluate the base model: its answers to queries about held-out scenes, in both stages."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, UInt8

from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce import Calce, normalise_queries
from calce_jax.models.selection import PromptSelection, SelectionConfig
from calce_jax.moments.windows import iou, parse_windows
from calce_jax.text.prompt import decode_answer
from calce_jax.text.text_tokenizer import TextTokenizer
from data.shapes.batches import QueryExample, SceneDataset
from data.shapes.pretrain.lessons import LessonDataset
from data.shapes.pretrain.pointing_loss import Task
from data.shapes.pretrain.text_stage import FrameTextEmbedder, make_labels, make_text_batch

SELECTION_BATCH_SIZE = 64  # queries of one call of the selection


@struct.dataclass
class EncodedScenes:
    """A dataset as the model encodes it.

    Fields:
      queries: query tokens of every frame, float16 (scenes, T, Q, W).
      prompt_selections: of stage 1 and stage 2, numpy; the leading axis is that of `SceneDataset.examples`.
    """

    queries: np.ndarray
    prompt_selections: tuple[PromptSelection, PromptSelection]


def encode_scenes(model: Calce, dataset: SceneDataset, selections: Mapping[int, SelectionConfig]) -> EncodedScenes:
    """Encode every frame, and select frames and captions for every query, `selections` by stage."""
    encode = nnx.jit(_encode_frames)
    side = model.config.vit.image_size
    outputs = [
        jax.device_get(encode(model, jnp.asarray(dataset.render_frames(i, side)[None])))
        for i in range(len(dataset.scenes))
    ]
    means, queries = (np.concatenate(arrays) for arrays in zip(*outputs, strict=True))
    features = (means[:, ::2], np.asarray(normalise_queries(jnp.asarray(queries))))
    stage1, stage2 = (
        _select_prompts(model, dataset, features[stage - 1], stage, selections[stage]) for stage in (1, 2)
    )
    return EncodedScenes(queries=queries, prompt_selections=(stage1, stage2))


def _encode_frames(model: Calce, frames: UInt8[Array, "B T Y X 3"]) -> tuple[Array, Array]:
    vision_features = model.encode_frames(frames)
    return model.frame_means(vision_features), model.frame_queries(vision_features).astype(jnp.float16)


def _select_prompts(
    model: Calce, dataset: SceneDataset, features: np.ndarray, stage: int, selection: SelectionConfig
) -> PromptSelection:
    select = nnx.jit(lambda model, features, batch: model.select_from_features(features, batch, selection))
    selections = []
    for first in range(0, len(dataset.examples), SELECTION_BATCH_SIZE):
        # The last batch is padded with repeated rows: one compiled shape serves all.
        rows = (dataset.examples[first : first + SELECTION_BATCH_SIZE] * SELECTION_BATCH_SIZE)[:SELECTION_BATCH_SIZE]
        batch_features = features[[row.scene_index for row in rows]]
        selections.append(jax.device_get(select(model, batch_features, dataset.make_batch(rows, stage))))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(dataset.examples)], *selections)


def make_task(
    dataset: SceneDataset, encoded: EncodedScenes, indices: np.ndarray, stage: int
) -> tuple[np.ndarray, Task]:
    """Return the query tokens of the frames of the plans of these examples, (B, S, Q, W), and the task."""
    rows = [dataset.examples[i] for i in indices]
    prompt_selection = jax.tree.map(lambda a: a[indices], encoded.prompt_selections[stage - 1])
    frames = prompt_selection.frame_plan.frame_index * (2 if stage == 1 else 1)
    queries = encoded.queries[np.array([row.scene_index for row in rows])[:, None], frames]
    return queries, Task(dataset.make_batch(rows, stage), prompt_selection, make_labels(dataset, rows, stage))


def evaluate_model(
    model: Calce,
    t5: TextTokenizer,
    dataset: SceneDataset,
    encoded: EncodedScenes,
    *,
    stage: int,
    prompt_length: int,
    batch_size: int = 16,
) -> dict[str, float]:
    """Return R1@0.5 and R1@0.7 of greedy answers, and R1@0.5 by kind of query, in percent.

    The last queries, which do not fill a batch, are not evaluated.
    """
    overlaps: dict[str, list[float]] = {}
    for first in range(0, len(dataset.examples) - batch_size + 1, batch_size):
        queries, task = make_task(dataset, encoded, np.arange(first, first + batch_size), stage)
        token_ids = jax.device_get(_generate(model, jnp.asarray(queries), task, prompt_length))
        for row, ids in zip(dataset.examples[first : first + batch_size], token_ids, strict=True):
            overlaps.setdefault(row.query.kind, []).append(_best_iou(dataset, row, decode_answer(t5, ids)))
    all_overlaps = [value for values in overlaps.values() for value in values]
    scores = {f"R1@{threshold}": _recall(all_overlaps, threshold) for threshold in (0.5, 0.7)}
    return scores | {f"R1@0.5 {kind}": _recall(values, 0.5) for kind, values in sorted(overlaps.items())}


def evaluate_lessons(
    model: Calce,
    embedder: FrameTextEmbedder,
    t5: TextTokenizer,
    dataset: LessonDataset,
    *,
    prompt_length: int,
    batch_size: int = 32,
) -> dict[str, float]:
    """Return how many greedy answers about frames that are described by words are exact, by lesson, in percent.

    Frames are as far apart as in stage 1 of the demo.
    """
    rng, exact = np.random.default_rng(0), {}
    for first in range(0, len(dataset.examples) - batch_size + 1, batch_size):
        rows: list[Any] = dataset.examples[first : first + batch_size]
        words, positions, task = make_text_batch(rng, dataset, rows, "sparse", dataset.num_frames // 2)
        ids = jax.device_get(
            _answer_lesson(model, embedder, (jnp.asarray(words), jnp.asarray(positions)), task, prompt_length)
        )
        for row, found, labels in zip(rows, ids, task.batch.labels, strict=True):
            is_exact = decode_answer(t5, found) == decode_answer(t5, labels)
            exact.setdefault(row.lesson, []).append(is_exact)
    return {lesson: round(100 * float(np.mean(values)), 1) for lesson, values in sorted(exact.items())}


@partial(nnx.jit, static_argnums=4)
def _answer_lesson(
    model: Calce, embedder: FrameTextEmbedder, words: tuple[Array, Array], task: Task, prompt_length: int
) -> Array:
    frames = embedder.embed_frames(model, *words)
    x, mask = model.assemble_prompt(frames, task.batch, task.prompt_selection, prompt_length)
    return beam_search(model.t5, model.t5.encode(x, mask), mask, num_beams=1, max_length=32).tokens[:, 0]


@partial(nnx.jit, static_argnums=3)
def _generate(model: Calce, queries: Array, task: Task, prompt_length: int) -> Array:
    x, mask = model.assemble_prompt(
        model.project_queries(queries.astype(jnp.float32)), task.batch, task.prompt_selection, prompt_length
    )
    return beam_search(model.t5, model.t5.encode(x, mask), mask, num_beams=1, max_length=32).tokens[:, 0]


def _recall(values: list[float], threshold: float) -> float:
    return round(100 * float(np.mean([value >= threshold for value in values])), 1)


def _best_iou(dataset: SceneDataset, row: QueryExample, text: str) -> float:
    windows = parse_windows(text, dataset.scenes[row.scene_index].duration).windows
    return max(iou(windows[0], list(true)) for true in row.query.windows) if windows else 0.0
