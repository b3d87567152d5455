"""Fit the ranker of segments to the windows of a run's training split.

Contrastive: of the videos in a batch, the vectors inside the windows of a query shall score higher with it than those
of the other videos. Another video may show the same thing; it is counted as wrong, as usual with pairs alone.

Dimensions: N videos, F pooled frames, G groups of query tokens, W width of the Q-Former, M pairs, E width of T5, B
batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from calce_jax.batch import AnyArray
from calce_jax.errors import UserError
from calce_jax.inference.predictor import Predictor
from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.rows import stored_frame_positions
from calce_jax.models.segment_ranker import (
    MAX_FRAMES,
    SegmentRanker,
    init_segment_ranker,
    pooled_frames,
)

BATCH_SIZE, STEPS, PEAK_LEARNING_RATE = 64, 1000, 5e-3
INITIAL_SCALE = 10.0
MIN_VIDEOS = 2
NEVER = -1e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Scaled:
    ranker: SegmentRanker
    log_scale: Float[AnyArray, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairBatch:
    """Pairs of a query and its video, each with the fields of `RankerData`; `pooled` has mean 0 and deviation 1."""

    pooled: Float[AnyArray, "B F G W"]
    frame_mask: Bool[AnyArray, "B F"]
    word_means: Float[AnyArray, "B E"]
    window_mask: Bool[AnyArray, "B F"]
    video: Int[AnyArray, " B"]


@dataclass(frozen=True)
class RankerData:
    """Pairs of a query and a video with its windows.

    Attributes:
      pooled: `pool_queries` of each video, float16 (N, F, G, W), padded in F.
      frame_mask: bool (N, F).
      word_means: of each query, float32 (M, E).
      video: of each query, int (M,).
      window_mask: frames inside the windows of each query, bool (M, F).
    """

    pooled: np.ndarray
    frame_mask: np.ndarray
    word_means: np.ndarray
    video: np.ndarray
    window_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.video)


def read_ranker_data(dataset: MomentDataset, predictor: Predictor) -> RankerData:
    """Encode every video of a split once, and collect its queries; those without a frame in a window are left out.

    A video takes 2 F G W bytes of memory, 120 kB at the full size.

    Raises:
      UserError: fewer than two videos have a query with windows.
      TablesError: the tables are damaged.
    """
    rows: dict[int, int] = {}
    pooled: list[np.ndarray] = []
    videos: list[int] = []
    masks: list[np.ndarray] = []
    sentences: list[str] = []
    for number in tqdm(range(len(dataset)), desc="encode", unit="query", dynamic_ncols=True):
        example = dataset[number]
        mask = _window_mask(example, predictor.num_frames)
        if not mask.any():
            continue
        if example.video_row not in rows:
            rows[example.video_row] = len(pooled)
            pooled.append(predictor.pool_features(example, predictor.encode_video(example)).astype(np.float16))
        videos.append(rows[example.video_row])
        masks.append(mask)
        sentences.append(example.query)
    if len(pooled) < MIN_VIDEOS:
        raise UserError(
            f"{dataset.folder}: {len(pooled)} videos of split {dataset.split} have a query with windows",
            f"a ranker needs {MIN_VIDEOS} or more, and is good with hundreds",
        )
    frame_mask = np.zeros((len(pooled), MAX_FRAMES), bool)
    padded = np.zeros((len(pooled), MAX_FRAMES, *pooled[0].shape[1:]), np.float16)
    for n, array in enumerate(pooled):
        padded[n, : len(array)], frame_mask[n, : len(array)] = array, True
    return RankerData(padded, frame_mask, predictor.mean_word_embeddings(sentences), np.array(videos), np.stack(masks))


def _window_mask(example: Example, num_frames: int) -> Bool[np.ndarray, " F"]:
    """Return which of the pooled frames, padded to `MAX_FRAMES`, are in a window of the query."""
    positions = stored_frame_positions(example.total_frames, example.indices, num_frames)
    times = np.asarray(example.times)[positions][pooled_frames(len(positions))]
    mask = np.zeros(MAX_FRAMES, bool)
    for start, end in example.windows:
        mask[: len(times)] |= (start <= times) & (times < end)
    return mask


def fit_ranker(data: RankerData, *, seed: int, steps: int = STEPS) -> SegmentRanker:
    """Return the ranker that was fitted to `data`; the same for the same seed.

    Args:
      data: of the training split.
      seed: of the first layers and of the order of the pairs.
      steps: of 64 pairs.
    """
    present = data.pooled[data.frame_mask].astype(np.float32)
    mean, deviation = present.mean(axis=(0, 1)), present.std(axis=(0, 1)) + 1e-3
    init_key, order_key = jax.random.split(jax.random.key(seed))
    ranker = init_segment_ranker(len(mean), data.word_means.shape[1], init_key)
    params: Any = _Scaled(ranker, jnp.log(jnp.float32(INITIAL_SCALE)))
    adam = optax.adam(optax.cosine_decay_schedule(PEAK_LEARNING_RATE, steps))

    @jax.jit
    def step(params: Any, state: optax.OptState, batch: PairBatch) -> tuple[Any, optax.OptState]:
        gradients = jax.grad(contrastive_loss)(params, batch)
        # optax mixes integer counters with floats, which strict promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(gradients, state)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    size = min(BATCH_SIZE, len(data))
    for _ in tqdm(range(steps), desc="fit", unit="step", dynamic_ncols=True):
        pairs = rng.choice(len(data), size, replace=False)
        videos = data.video[pairs]
        pooled = (data.pooled[videos].astype(np.float32) - mean) / deviation
        batch = PairBatch(pooled, data.frame_mask[videos], data.word_means[pairs], data.window_mask[pairs], videos)
        params, state = step(params, state, batch)
    # The layers are applied to what the Q-Former gives, so its mean and deviation become part of the first.
    kernel = np.asarray(params.ranker.image_kernel) / deviation[:, None]
    bias = np.asarray(params.ranker.image_bias) - mean @ kernel
    return replace(params.ranker, image_kernel=jnp.asarray(kernel), image_bias=jnp.asarray(bias))


def contrastive_loss(params: _Scaled, batch: PairBatch) -> Float[Array, ""]:
    """Return the mean cross-entropy of the own video's windows among the other videos of the batch.

    The score of a video is the logarithm of the mean exponential of the scaled cosines of its vectors: a maximum with a
    gradient for each. Other queries' rows of the same video are no others.
    """
    images, texts = params.ranker.embed_images(batch.pooled), params.ranker.embed_texts(batch.word_means)
    cosines = jnp.exp(params.log_scale) * jnp.einsum(
        "bfgd,qd->qbfg", images, texts, precision=jax.lax.Precision.HIGHEST
    )
    groups = cosines.shape[3]

    def soft_maximum(scores: Array, mask: Array) -> Array:
        masked = jnp.where(mask[..., None], scores, NEVER).reshape(*scores.shape[:-2], -1)
        count = mask.sum(axis=-1).astype(jnp.float32) * groups
        return jax.nn.logsumexp(masked, axis=-1) - jnp.log(jnp.maximum(count, 1.0))

    rows = jnp.arange(batch.pooled.shape[0])
    own = soft_maximum(cosines[rows, rows], jnp.asarray(batch.window_mask))
    others = soft_maximum(cosines, jnp.broadcast_to(jnp.asarray(batch.frame_mask)[None], cosines.shape[:3]))
    video = jnp.asarray(batch.video)
    is_same = video[:, None] == video[None]
    logits = jnp.concatenate([own[:, None], jnp.where(is_same, NEVER, others)], axis=1)
    return (jax.nn.logsumexp(logits, axis=1) - own).mean()


def recall_of_own_video(ranker: SegmentRanker, data: RankerData, counts: Sequence[int]) -> dict[int, float]:
    """Return for each count how often a query's own video is among so many best of the split, in percent."""
    images = np.asarray(ranker.embed_images(data.pooled), np.float32)
    texts = np.asarray(ranker.embed_texts(data.word_means), np.float32)
    ranks = []
    for text, own in zip(texts, data.video, strict=True):
        scores = np.where(data.frame_mask[..., None], images @ text, -np.inf).max(axis=(1, 2))
        ranks.append(int((scores > scores[own]).sum()))
    return {count: 100 * float(np.mean(np.array(ranks) < count)) for count in counts}
