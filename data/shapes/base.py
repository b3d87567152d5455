"""The tiny base model: what BLIP-2 and Flan-T5 are to the full model, made from nothing in three lessons.

    seeing     ViT, Q-Former and the compression tell what stands in each lane of a frame, and where.
    reading    T5 alone answers queries about scenes that are told in words: the name of a shape for a frame with it.
    answering  the ViT is frozen; all else learns the answers to queries about what is seen, in the prompts of both
               stages, and which captions resemble a query.

Nothing of it is from outside: scenes, tokenizers and weights are all made here, from seeds.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, UInt8
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch
from calce_jax.generate import beam_search
from calce_jax.models.calce import Calce, CalceConfig, Reading, Selection, answer_loss, shifted
from calce_jax.models.layers import Linear
from calce_jax.models.t5 import T5
from calce_jax.models.vit import normalise
from calce_jax.packing import Packed, pack
from calce_jax.prompt import PromptWriter, TextSizes, answer_text
from calce_jax.step import at_bucket
from calce_jax.windows import iou, parse_windows
from data.shapes.pool import LANES, LOOKS, WINDOWS, Asked, Pool, Told, draw, looks
from data.shapes.scene import COLOURS, SHAPES

# Scenes of the demo have small seeds.
TRAIN_SEEDS, HELD_OUT_SEEDS = 10_000_000, 90_000_000
SHARPNESS = 20.0  # of the step from unlike to alike, around the cosine that decides whether a caption is used


@dataclass(frozen=True)
class Lessons:
    """How long and how fast.

    Fields:
      scenes, held_out: how many scenes are learnt from, and how many judge.
      seeing_steps, seeing_batch: of the first lesson; the batch in frames.
      reading: courses of the second, equally long: how many frames are told, and the length of the prompt in tokens.
      reading_steps, reading_batch: of the second; the batch in queries.
      answering_steps, answering_batch: of the third; the batch in queries.
      fine_every: one in so many batches of the third has the prompts of stage 2.
    """

    scenes: int = 3000
    held_out: int = 60
    seeing_steps: int = 400
    seeing_batch: int = 128
    seeing_rate: float = 2e-3
    reading: tuple[tuple[int, int], ...] = ((1, 64), (3, 80), (8, 112), (20, 192))
    reading_steps: int = 2000
    reading_batch: int = 32
    reading_rate: float = 2e-3
    answering_steps: int = 3000
    answering_batch: int = 16
    answering_rate: float = 1e-3
    fine_every: int = 4
    frames: int = 40
    buckets: tuple[int, ...] = (168, 208)
    seed: int = 0


SELECTIONS = {
    1: Selection(stage=1, clusters=6, dilation=0),
    2: Selection(stage=2, clusters=6, dilation=1, filter_dilation=1),
}


class Teacher(nnx.Module):
    """Says what is seen in each lane from a frame's query tokens, all of them and the compressed ones."""

    def __init__(self, config: CalceConfig, rngs: nnx.Rngs):
        outputs = LANES * (LOOKS + 1)
        self.full = Linear(config.qformer.queries * config.qformer.width, outputs, rngs=rngs)
        self.few = Linear(config.compressed * config.qformer.width, outputs, rngs=rngs)

    def loss(self, model: Calce, frames: UInt8[Array, "F H W 3"], there: Array, right: Array) -> Float[Array, ""]:
        """Return the mean loss of what and where over both readings."""
        queries = model.qformer.visual(model.ln_vision(model.vit(normalise(frames, jnp.dtype(jnp.float32)))))
        few = jnp.swapaxes(model.query_proj(jnp.swapaxes(queries, -1, -2)), -1, -2)
        total = jnp.zeros(())
        for read, tokens in ((self.full, queries), (self.few, few)):
            said = read(tokens.reshape(len(frames), -1)).reshape(len(frames), LANES, LOOKS + 1)
            what = optax.softmax_cross_entropy_with_integer_labels(said[..., :LOOKS], there).mean()
            where = jnp.where(there > 0, jnp.square(said[..., LOOKS] - right), 0.0).mean()
            total = total + what + 2.0 * where
        return total


class Pointer(nnx.Module):
    """Points, at the time token of every frame, at the frames of the answer: in it, its first, its last.

    Twenty frames of an example say more than the two numbers of its answer, so the encoder learns where to look long
    before the decoder can write it down. The pointer is thrown away after the lesson.
    """

    def __init__(self, config: CalceConfig, rngs: nnx.Rngs):
        self.read = Linear(config.t5.width, 3, rngs=rngs)
        self.name = Linear(config.t5.width, 1, rngs=rngs)

    def loss(
        self,
        memory: Float[Array, "B L E"],
        packed: Packed,
        rows: Batch,
        reading: Reading,
        truth: Float[Array, "B W 2"],
    ) -> Float[Array, ""]:
        """Return the mean over time tokens; `truth` holds the true windows in seconds, (-1, -1) where there is none."""
        plan = reading.plan
        seconds = jnp.take_along_axis(rows.times, plan.index, axis=1)
        inside = (truth[:, None, :, 0] <= seconds[:, :, None]) & (seconds[:, :, None] < truth[:, None, :, 1])
        inside = inside.any(axis=-1) & plan.kept
        before = jnp.pad(inside[:, :-1], ((0, 0), (1, 0)))
        after = jnp.pad(inside[:, 1:], ((0, 0), (0, 1)))
        wanted = jnp.stack([inside, inside & ~before, inside & ~after], axis=-1)
        # The time of a frame stands right behind its query tokens.
        visual = packed.mask & ~packed.text
        behind = jnp.pad(visual[:, :-1], ((0, 0), (1, 0))) & packed.text
        slot = jnp.pad(packed.slot[:, :-1], ((0, 0), (1, 0)))
        labels = jnp.take_along_axis(wanted, slot[:, :, None], axis=1).astype(jnp.float32)
        return self.pointing(memory, labels, behind)

    def pointing(
        self, memory: Float[Array, "B L E"], wanted: Float[Array, "B L 3"], times: Bool[Array, "B L"]
    ) -> Float[Array, ""]:
        """Return the mean loss over the positions in `times`."""
        each = optax.sigmoid_binary_cross_entropy(self.read(memory), wanted)
        return jnp.where(times[:, :, None], each, 0.0).sum() / times.sum().astype(jnp.float32)

    def naming(
        self, memory: Float[Array, "B L E"], asked: Float[Array, "B L"], words: Bool[Array, "B L"]
    ) -> Float[Array, ""]:
        """Return the mean loss, over the positions in `words`, of telling which of them the query names, too."""
        each = optax.sigmoid_binary_cross_entropy(self.name(memory)[..., 0], asked)
        return jnp.where(words, each, 0.0).sum() / jnp.maximum(words.sum(), 1).astype(jnp.float32)


def make_base(
    config: CalceConfig, t5: PreTrainedTokenizerBase, bert: PreTrainedTokenizerBase, lessons: Lessons
) -> tuple[Calce, dict[str, dict[str, float]]]:
    """Teach a model from nothing; also return its scores on held-out scenes, by stage."""
    model = Calce(config, rngs=nnx.Rngs(lessons.seed))
    writers = (
        PromptWriter(t5, bert, TextSizes(lessons.frames // 2, 8, 24, 320, 32), stage=1),
        PromptWriter(t5, bert, TextSizes(lessons.frames, 8, 24, 320, 32), stage=2),
    )
    pool, held_out = (
        Pool(range(first, first + count), *writers)
        for first, count in ((TRAIN_SEEDS, lessons.scenes), (HELD_OUT_SEEDS, lessons.held_out))
    )
    pointer = Pointer(config, nnx.Rngs(lessons.seed + 3))
    learn_to_see(model, pool, lessons)
    learn_to_read(model.t5, pointer, pool, words_of(t5), lessons)
    seen, seen_held_out = seen_by(model, pool), seen_by(model, held_out)
    learn_to_answer(
        model,
        pointer,
        pool,
        seen,
        lessons,
        on_tenth=lambda: logging.info("held out: %s", judge(model, t5, held_out, seen_held_out)),
    )
    return model, {f"stage {stage}": judge(model, t5, held_out, seen_held_out, stage=stage) for stage in (1, 2)}


def words_of(t5: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return the ids of the names of all coloured shapes."""
    things = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    return {thing: t5(thing, add_special_tokens=False)["input_ids"] for thing in things}


def learn_to_see(model: Calce, pool: Pool, lessons: Lessons) -> None:
    """The first lesson; in place."""
    rng = np.random.default_rng(lessons.seed)
    side = model.config.vit.image_size

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for _ in range(lessons.seeing_steps):
            scenes = [pool.scenes[i] for i in rng.integers(len(pool.scenes), size=lessons.seeing_batch)]
            seconds = [float(rng.uniform(0, scene.duration)) for scene in scenes]
            frames = np.stack([draw(scene, at, side) for scene, at in zip(scenes, seconds, strict=True)])
            there, right = zip(*map(looks, scenes, seconds), strict=True)
            noisy = frames + rng.normal(0, 3, frames.shape)
            yield noisy.clip(0, 255).astype(np.uint8), np.stack(there), np.stack(right)

    both = nnx.Dict(model=model, teacher=Teacher(model.config, nnx.Rngs(lessons.seed + 1)))
    _learn(
        "seeing",
        both,
        batches(),
        lambda both, batch: both["teacher"].loss(both["model"], *batch),
        rate=lessons.seeing_rate,
        steps=lessons.seeing_steps,
    )


def learn_to_read(t5: T5, pointer: Pointer, pool: Pool, names: Mapping[str, Sequence[int]], lessons: Lessons) -> None:
    """The second lesson; in place. It begins with one frame, where the only other mention of a shape is the query's.

    Told twenty frames at once, nothing was learnt in the 500 steps that were tried. The presumed reason: a shape's name
    stands in many frames, and which mention is the query's has to be found out together with what to do about it.
    """
    rng = np.random.default_rng(lessons.seed + 1)
    # A head that starts as the embedding turned round finds it easy to repeat a number that was read.
    t5.lm_head.kernel[...] = t5.shared.embedding[...].T * (2.0 * t5.config.width**-0.5)
    courses = len(lessons.reading)

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for number in range(lessons.reading_steps):
            frames, length = lessons.reading[number * courses // lessons.reading_steps]
            rows = [pool.asked[i] for i in rng.integers(len(pool.asked), size=lessons.reading_batch)]
            told = [pool.told(row, names, _shown(rng, pool.inside(row), frames), length) for row in rows]
            stacked = (np.stack([getattr(each, field.name) for each in told]) for field in dataclasses.fields(Told))
            yield (*stacked, np.stack([row.coarse.labels for row in rows]))

    def loss(both: Any, batch: tuple[Array, ...]) -> Float[Array, ""]:
        t5, pointer = both["t5"], both["pointer"]
        ids, pointed, times, words, asked, labels = batch
        mask = ids != 0
        memory = t5.encode(t5.shared(ids), mask)
        answers = answer_loss(t5.decode(shifted(labels), memory, mask), labels)
        return answers.mean() + pointer.pointing(memory, pointed, times) + pointer.naming(memory, asked, words)

    both = nnx.Dict(t5=t5, pointer=pointer)
    _learn("reading", both, batches(), loss, rate=lessons.reading_rate, steps=lessons.reading_steps)


def _shown(rng: np.random.Generator, inside: np.ndarray, frames: int) -> range:
    """Choose so many frames in a row, around a border of the answer where it has one."""
    borders = np.flatnonzero(np.diff(inside.astype(int)))
    middle = int(rng.choice(borders)) + 1 if len(borders) else int(rng.integers(len(inside)))
    first = min(max(middle - int(rng.integers(frames + 1)), 0), len(inside) - frames)
    return range(first, first + frames)


def learn_to_answer(
    model: Calce, pointer: Pointer, pool: Pool, seen: np.ndarray, lessons: Lessons, *, on_tenth: Callable[[], None]
) -> None:
    """The third lesson; in place. Every few batches have the prompts of stage 2."""
    rng = np.random.default_rng(lessons.seed + 2)

    def batches(stage: int) -> Iterator[tuple[Any, ...]]:
        while True:
            rows = [pool.asked[i] for i in rng.integers(len(pool.asked), size=lessons.answering_batch)]
            about = np.array([row.about for row in rows])
            truth = np.full((len(rows), WINDOWS, 2), -1, np.float32)
            for i, row in enumerate(rows):
                truth[i, : len(row.query.windows)] = row.query.windows
            looked = seen[[row.scene for row in rows], :: 2 if stage == 1 else 1]
            yield looked, pool.batch(rows, stage), about, truth

    def loss(both: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, pointer = both["model"], both["pointer"]
        tokens, rows, about, truth = batch
        selection = SELECTIONS[1 if tokens.shape[1] < lessons.frames else 2]
        tokens = tokens.astype(jnp.float32)
        reading = jax.lax.stop_gradient(model.read(tokens, rows, selection))

        def of_length(length: int) -> Float[Array, ""]:
            x, mask = model.embed(tokens, rows, reading, length)
            memory = model.t5.encode(x, mask)
            answers = answer_loss(model.t5.decode(shifted(rows.labels), memory, mask), rows.labels)
            return answers.mean() + pointer.loss(memory, packed(model, rows, reading, length), rows, reading, truth)

        total, _ = at_bucket(lessons.buckets, reading.needed, of_length)
        return total + 0.5 * caption_loss(model, rows, about, selection)

    def mixed() -> Iterator[tuple[Any, ...]]:
        coarse, fine = batches(1), batches(2)
        for number in range(lessons.answering_steps):
            yield next(fine if number % lessons.fine_every == lessons.fine_every - 1 else coarse)

    both = nnx.Dict(model=model, pointer=pointer)
    _learn(
        "answering",
        both,
        mixed(),
        loss,
        rate=lessons.answering_rate,
        steps=lessons.answering_steps,
        on_tenth=on_tenth,
    )


def packed(model: Calce, rows: Batch, reading: Reading, length: int) -> Packed:
    """Return what stands at each position of the prompts that `Calce.embed` lays out."""
    return pack(
        reading.plan,
        rows.tokens,
        rows.spans,
        reading.choice,
        length=length,
        full=model.config.qformer.queries,
        compressed=model.config.compressed,
    )


def caption_loss(model: Calce, batch: Batch, about: Bool[Array, "B C"], selection: Selection) -> Float[Array, ""]:
    """Pull captions that a query asks about above the cosine that lets them in, and all others below."""
    choice = model.choose_captions(batch, selection)
    valid = (batch.caption_words != 0).any(axis=-1)
    logits = SHARPNESS * (choice.similarity - selection.similarity)
    each = optax.sigmoid_binary_cross_entropy(logits, about.astype(jnp.float32))
    return jnp.where(valid, each, 0.0).sum() / jnp.maximum(valid.sum(), 1).astype(jnp.float32)


def seen_by(model: Calce, pool: Pool) -> np.ndarray:
    """Return the vision tower's tokens of every frame of a pool: float16 (scenes, T, P, D)."""
    see = nnx.jit(lambda model, frames: model.see(frames).astype(jnp.float16))
    side = model.config.vit.image_size
    return np.concatenate([jax.device_get(see(model, pool.drawn(i, side)[None])) for i in range(len(pool.scenes))])


def judge(
    model: Calce, t5: PreTrainedTokenizerBase, pool: Pool, seen: np.ndarray, *, stage: int = 1, batch: int = 16
) -> dict[str, float]:
    """Return the share of queries (percent) whose first answered window overlaps a true one by half and by 0.7."""
    overlaps: dict[str, list[float]] = {}
    for first in range(0, len(pool.asked) - batch + 1, batch):
        rows = pool.asked[first : first + batch]
        tokens = seen[[row.scene for row in rows], :: 2 if stage == 1 else 1]
        written = jax.device_get(_answer(model, jnp.asarray(tokens), pool.batch(rows, stage), stage))
        for row, ids in zip(rows, written, strict=True):
            overlaps.setdefault(row.query.kind, []).append(_overlap(pool, row, answer_text(t5, ids)))
    every = [value for values in overlaps.values() for value in values]
    scores = {f"R1@{bar}": 100 * float(np.mean([value >= bar for value in every])) for bar in (0.5, 0.7)}
    by_kind = {f"R1@0.5 {kind}": 100 * float(np.mean([v >= 0.5 for v in vs])) for kind, vs in sorted(overlaps.items())}
    return {name: round(value, 1) for name, value in {**scores, **by_kind}.items()}


@partial(nnx.jit, static_argnums=3)
def _answer(model: Calce, tokens: Array, rows: Batch, stage: int) -> Array:
    tokens, longest = tokens.astype(jnp.float32), Lessons.buckets[-1]
    reading = model.read(tokens, rows, SELECTIONS[stage])
    x, mask = model.embed(tokens, rows, reading, longest)
    return beam_search(model.t5, model.t5.encode(x, mask), mask, beams=1, length=32).tokens[:, 0]


def _overlap(pool: Pool, row: Asked, text: str) -> float:
    windows = parse_windows(text, pool.scenes[row.scene].duration).windows
    return max(iou(windows[0], list(true)) for true in row.query.windows) if windows else 0.0


def _learn(
    name: str,
    module: Any,
    batches: Iterator[Any],
    loss: Callable[[Any, Any], Float[Array, ""]],
    *,
    rate: float,
    steps: int,
    on_tenth: Callable[[], None] = lambda: None,
) -> None:
    """Adam with a warm-up and a cosine, on all parameters that the loss reaches; in place."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 20, 1), steps, rate / 50)
    optimizer = nnx.Optimizer(
        module, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.01)), wrt=nnx.Param
    )

    @nnx.jit
    def step(module: Any, optimizer: nnx.Optimizer, batch: Any) -> Float[Array, ""]:
        value, gradients = nnx.value_and_grad(loss)(module, batch)
        optimizer.update(module, gradients)
        return value

    # Split over all devices; on a CPU these may be simulated, one for each core (unmeasured what that gains).
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    nnx.update((module, optimizer), jax.device_put(nnx.state((module, optimizer)), NamedSharding(mesh, P())))
    split = NamedSharding(mesh, P("data"))
    began, losses = time.monotonic(), []
    for number, batch in enumerate(batches, 1):
        losses.append(step(module, optimizer, jax.device_put(batch, split)))
        if number % 50 == 0 or number == steps:
            mean = float(np.mean(jax.device_get(losses)))
            losses = []
            logging.info("%s: step %d of %d, loss %.3f, %.0f s", name, number, steps, mean, time.monotonic() - began)
        if number % max(steps // 10, 1) == 0:
            on_tenth()
