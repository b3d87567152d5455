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
from calce_jax.models.calce import Calce, Selection
from calce_jax.models.vit import normalise
from data.shapes.batches import Pool, draw, said_at
from data.shapes.pretrain.fit import learn
from data.shapes.pretrain.text_stage import Teller

SHARPNESS = 20.0  # of the step from unlike to alike, around the cosine that decides whether a caption is used
NOISE = 3.0  # grey levels, about what a codec adds


def learn_to_see(
    model: Calce,
    teller: Teller,
    pool: Pool,
    selection: Selection,
    *,
    steps: int,
    batch: int,
    captions: int,
    rate: float,
    seed: int,
) -> None:
    """The lesson; in place. A batch has so many frames, and the captions of so many queries."""
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[tuple[Any, ...]]:
        for _ in range(steps):
            frames, said, places = looked(rng, pool, batch, model.config.vit.image_size)
            rows = [pool.asked[i] for i in rng.integers(len(pool.asked), size=captions)]
            yield frames, said, places, pool.batch(rows, 1), np.array([row.about for row in rows])

    def loss(both: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, teller = both["model"], both["teller"]
        frames, said, places, rows, about = batch
        wanted = jax.lax.stop_gradient(teller.described(model, said[:, None], places[:, None]))
        off = jnp.square(model.described(queries_of(model, frames)[:, None]) - wanted).mean(axis=(0, 1, 3))
        size = jnp.square(wanted).mean(axis=(0, 1, 3))
        return (off / size).mean() + caption_loss(model, rows, about, selection)

    both = nnx.Dict(model=model, teller=teller)
    learn("seeing", both, ("vit", "ln_vision", "qformer", "t5_proj"), batches(), loss, rate=rate, steps=steps)


def queries_of(model: Calce, frames: UInt8[Array, "F Y X 3"]) -> Float[Array, "F Q W"]:
    """Return the query tokens of frames, the vision tower included in what is learnt."""
    return model.qformer.visual(model.ln_vision(model.vit(normalise(frames, jnp.dtype(jnp.float32)))))


def looked(rng: np.random.Generator, pool: Pool, count: int, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return frames (uint8, F Y X 3) of any moments, and what is to be said of them (F 4, F 4)."""
    scenes = [pool.scenes[i] for i in rng.integers(len(pool.scenes), size=count)]
    seconds = [float(rng.uniform(0, scene.duration)) for scene in scenes]
    frames = np.stack([draw(scene, at, side) for scene, at in zip(scenes, seconds, strict=True)])
    noisy = (frames + rng.normal(0, NOISE, frames.shape)).clip(0, 255).astype(np.uint8)
    said, places = zip(*(said_at(scene, at) for scene, at in zip(scenes, seconds, strict=True)), strict=True)
    return noisy, np.stack(said), np.stack(places)


def named(model: Calce, teller: Teller, pool: Pool, *, count: int = 256) -> float:
    """Return how many of the words that query tokens of unseen frames are nearest to are right, in percent."""
    frames, said, _ = looked(np.random.default_rng(0), pool, count, model.config.vit.image_size)
    described = model.t5_proj(nnx.jit(queries_of)(model, jnp.asarray(frames)))
    words = model.t5.shared(jnp.asarray(teller.words))
    # A place moves a word along one direction; what is said is told by the others.
    along = teller.place[...] / jnp.linalg.norm(teller.place[...])
    described, words = (x - jnp.einsum("...e,e,f->...f", x, along, along) for x in (described, words))
    distance = jnp.square(described[:, :, None] - words[None, None]).sum(axis=-1)
    return 100 * float((np.asarray(distance.argmin(axis=-1)) == said).mean())


def caption_loss(model: Calce, batch: Batch, about: Bool[Array, "B C"], selection: Selection) -> Float[Array, ""]:
    """Pull captions that a query asks about above the cosine that lets them in, and all others below."""
    choice = model.choose_captions(batch, selection)
    valid = (batch.caption_words != 0).any(axis=-1)
    logits = SHARPNESS * (choice.similarity - selection.similarity)
    each = optax.sigmoid_binary_cross_entropy(logits, about.astype(jnp.float32))
    return jnp.where(valid, each, 0.0).sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32)
