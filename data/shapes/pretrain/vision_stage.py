"""The second lesson: ViT and Q-Former tell in T5's words what stands in each lane of a frame, and where.

And the Q-Former's other branch learns which captions are what a query asks about.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from calce_jax.batch import Batch
from calce_jax.models.calce import Calce, SelectionConfig
from calce_jax.models.vit import normalise_frames
from data.shapes.batches import SceneDataset, frame_words, render_resized
from data.shapes.pretrain.fit import fit
from data.shapes.pretrain.text_stage import FrameTextEmbedder

CAPTION_LOGIT_SCALE = 20.0  # of the step from unlike to alike, around the cosine that decides whether a caption is used
NOISE_STD = 3.0  # grey levels, about what a codec adds


def train_vision_stage(
    model: Calce,
    embedder: FrameTextEmbedder,
    dataset: SceneDataset,
    selection: SelectionConfig,
    *,
    steps: int,
    batch_size: int,
    caption_batch_size: int,
    peak_learning_rate: float,
    seed: int,
) -> None:
    """The lesson; in place. A batch has so many frames, and the captions of so many queries."""
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[tuple[Any, ...]]:
        for _ in range(steps):
            frames, word_indices, positions = sample_frames(rng, dataset, batch_size, model.config.vit.image_size)
            rows = [dataset.examples[i] for i in rng.integers(len(dataset.examples), size=caption_batch_size)]
            yield frames, word_indices, positions, dataset.make_batch(rows, 1), np.array([row.about for row in rows])

    def loss(modules: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, embedder = modules["model"], modules["teller"]
        frames, word_indices, positions, rows, is_target_caption = batch
        targets = jax.lax.stop_gradient(embedder.described(model, word_indices[:, None], positions[:, None]))
        squared_error = jnp.square(model.described(qformer_queries(model, frames)[:, None]) - targets).mean(
            axis=(0, 1, 3)
        )
        target_scale = jnp.square(targets).mean(axis=(0, 1, 3))
        return (squared_error / target_scale).mean() + caption_loss(model, rows, is_target_caption, selection)

    modules = nnx.Dict(model=model, teller=embedder)
    fit(
        "seeing",
        modules,
        ("vit", "ln_vision", "qformer", "t5_proj"),
        batches(),
        loss,
        peak_learning_rate=peak_learning_rate,
        steps=steps,
    )


def qformer_queries(model: Calce, frames: UInt8[Array, "F Y X 3"]) -> Float[Array, "F Q W"]:
    """Return the query tokens of frames, the vision tower included in what is learnt."""
    return model.qformer.encode_images(model.ln_vision(model.vit(normalise_frames(frames, jnp.dtype(jnp.float32)))))


def sample_frames(
    rng: np.random.Generator, dataset: SceneDataset, count: int, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames (uint8, F Y X 3) of any moments, and what is to be said of them (F 4, F 4)."""
    scenes = [dataset.scenes[i] for i in rng.integers(len(dataset.scenes), size=count)]
    seconds = [float(rng.uniform(0, scene.duration)) for scene in scenes]
    frames = np.stack([render_resized(scene, at, side) for scene, at in zip(scenes, seconds, strict=True)])
    noisy = (frames + rng.normal(0, NOISE_STD, frames.shape)).clip(0, 255).astype(np.uint8)
    word_indices, positions = zip(
        *(frame_words(scene, at) for scene, at in zip(scenes, seconds, strict=True)), strict=True
    )
    return noisy, np.stack(word_indices), np.stack(positions)


def word_accuracy(model: Calce, embedder: FrameTextEmbedder, dataset: SceneDataset, *, count: int = 256) -> float:
    """Return how many of the words that query tokens of unseen frames are nearest to are right, in percent."""
    frames, word_indices, _ = sample_frames(np.random.default_rng(0), dataset, count, model.config.vit.image_size)
    projected = model.t5_proj(nnx.jit(qformer_queries)(model, jnp.asarray(frames)))
    words = model.t5.shared(jnp.asarray(embedder.word_ids))
    # A place moves a word along one direction; what is said is told by the others.
    along = embedder.place[...] / jnp.linalg.norm(embedder.place[...])
    projected, words = (x - jnp.einsum("...e,e,f->...f", x, along, along) for x in (projected, words))
    distance = jnp.square(projected[:, :, None] - words[None, None]).sum(axis=-1)
    return 100 * float((np.asarray(distance.argmin(axis=-1)) == word_indices).mean())


def caption_loss(
    model: Calce, batch: Batch, is_target: Bool[Array, "B C"], selection: SelectionConfig
) -> Float[Array, ""]:
    """Pull captions that a query asks about above the cosine that lets them in, and all others below."""
    choice = model.select_captions(batch, selection)
    valid = (batch.caption_bert_tokens != 0).any(axis=-1)
    logits = CAPTION_LOGIT_SCALE * (choice.similarity - selection.min_similarity)
    losses = optax.sigmoid_binary_cross_entropy(logits, is_target.astype(jnp.float32))
    return jnp.where(valid, losses, 0.0).sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32)
