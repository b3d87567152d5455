"""The vision stage: ViT and Q-Former learn to encode a frame as the embeddings of the words that describe it.

At the same time the Q-Former's text branch learns which captions a query is about.

Dimensions: F frames, Y X pixels, Q query tokens, W their width, B queries, C captions.
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
from calce_jax.models.calce import Calce
from calce_jax.models.selection import SelectionConfig
from calce_jax.models.vit import normalise_frames
from data.shapes.batches import SceneDataset, frame_words, render_resized
from data.shapes.pretrain.fit import fit
from data.shapes.pretrain.text_stage import FrameTextEmbedder

CAPTION_LOGIT_SCALE = 20.0  # of the cosine minus `min_similarity`, in the loss of captions
NOISE_STD = 3.0  # grey levels, about the noise of a video codec


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
    """Train ViT and Q-Former in place; a step has `batch_size` frames and captions of `caption_batch_size` queries."""
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[tuple[Any, ...]]:
        for _ in range(steps):
            frames, word_indices, positions = sample_frames(rng, dataset, batch_size, model.config.vit.image_size)
            rows = [dataset.examples[i] for i in rng.integers(len(dataset.examples), size=caption_batch_size)]
            is_target_caption = np.array([row.is_target_caption for row in rows])
            yield frames, word_indices, positions, dataset.make_batch(rows, 1), is_target_caption

    def loss(modules: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, embedder = modules["model"], modules["embedder"]
        frames, word_indices, positions, rows, is_target_caption = batch
        targets = jax.lax.stop_gradient(embedder.embed_frames(model, word_indices[:, None], positions[:, None]))
        projected = model.project_queries(qformer_queries(model, frames)[:, None])
        squared_error = jnp.square(projected - targets).mean(axis=(0, 1, 3))
        target_scale = jnp.square(targets).mean(axis=(0, 1, 3))
        return (squared_error / target_scale).mean() + caption_loss(model, rows, is_target_caption, selection)

    modules = nnx.Dict(model=model, embedder=embedder)
    fit(
        "vision stage",
        modules,
        ("vit", "ln_vision", "qformer", "t5_proj"),
        batches(),
        loss,
        peak_learning_rate=peak_learning_rate,
        steps=steps,
    )


def qformer_queries(model: Calce, frames: UInt8[Array, "F Y X 3"]) -> Float[Array, "F Q W"]:
    """Return the Q-Former's query tokens of frames, differentiable in all parameters."""
    return model.qformer.encode_images(model.ln_vision(model.vit(normalise_frames(frames, jnp.dtype(jnp.float32)))))


def sample_frames(
    rng: np.random.Generator, dataset: SceneDataset, count: int, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return random frames with noise (uint8, F Y X 3), their word indices (F 4) and positions (F 4)."""
    scenes = [dataset.scenes[i] for i in rng.integers(len(dataset.scenes), size=count)]
    seconds = [float(rng.uniform(0, scene.duration)) for scene in scenes]
    frames = np.stack([render_resized(scene, at, side) for scene, at in zip(scenes, seconds, strict=True)])
    noisy = (frames + rng.normal(0, NOISE_STD, frames.shape)).clip(0, 255).astype(np.uint8)
    word_indices, positions = zip(
        *(frame_words(scene, at) for scene, at in zip(scenes, seconds, strict=True)), strict=True
    )
    return noisy, np.stack(word_indices), np.stack(positions)


def word_accuracy(model: Calce, embedder: FrameTextEmbedder, dataset: SceneDataset, *, count: int = 256) -> float:
    """Return the percentage of query tokens of held-out frames whose nearest word embedding is the right one."""
    frames, word_indices, _ = sample_frames(np.random.default_rng(0), dataset, count, model.config.vit.image_size)
    projected = model.t5_proj(nnx.jit(qformer_queries)(model, jnp.asarray(frames)))
    words = model.t5.shared(jnp.asarray(embedder.word_ids))
    # The position moves an embedding along one direction; words differ in the others.
    direction = embedder.place[...] / jnp.linalg.norm(embedder.place[...])
    projected, words = (x - jnp.einsum("...e,e,f->...f", x, direction, direction) for x in (projected, words))
    distance = jnp.square(projected[:, :, None] - words[None, None]).sum(axis=-1)
    return 100 * float((np.asarray(distance.argmin(axis=-1)) == word_indices).mean())


def caption_loss(
    model: Calce, batch: Batch, is_target: Bool[Array, "B C"], selection: SelectionConfig
) -> Float[Array, ""]:
    """Return the loss that moves the cosines of target captions above `selection.min_similarity`, and others below."""
    similarity = model.select_captions(batch, selection).similarity
    valid = (batch.caption_bert_tokens != 0).any(axis=-1)
    logits = CAPTION_LOGIT_SCALE * (similarity - selection.min_similarity)
    losses = optax.sigmoid_binary_cross_entropy(logits, is_target.astype(jnp.float32))
    return jnp.where(valid, losses, 0.0).sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32)
