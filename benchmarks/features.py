"""A training step from stored features beside one that sees its frames: `python -m benchmarks.features`.

Both are the step that `launch/train.py` compiles, from a batch on the host, at the longest length of prompts alone.
With `--of=qformer` both leave `ln_vision` frozen. Before that, what depends on no machine is counted: for every run at
full size the bytes of a video, and the matrix products of a step.
"""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.aot.programs import Shapes, train_step
from benchmarks.material import example
from benchmarks.paired import Row, Setting, arguments, compare, compiled, report
from calce_jax.batch import Batch, Features
from calce_jax.checkpoints.restore import build_model, calce_config
from calce_jax.config import RunConfig, validate
from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.predict_step import step_config
from calce_jax.input_pipeline import make_iterator
from calce_jax.input_pipeline.batches import input_config
from calce_jax.input_pipeline.feature_fingerprint import made_by
from calce_jax.models.calce import Calce, CalceConfig
from calce_jax.models.feature_codec import Of, Store, stored
from calce_jax.text.tokenizers import Tokenizers, load_bert, load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import new_state
from calce_jax.training.train_step import make_train_step
from configs.calce import get_config
from data import tokenizers

NORM = {"vit": "trained", "qformer": "frozen"}
STORES: tuple[Store, ...] = ("float32", "bfloat16", "int8")
COUNTED = tuple(f"{dataset},stage={stage},size=full" for dataset in ("qvh", "charades") for stage in (1, 2))
# By size: the run, and the videos of a batch.
TIMED = {"tiny": ("shapes,stage=1,size=tiny", 8), "small": ("qvh,stage=1,size=small", 1)}
# Losses from bfloat16 and from frames may be so far apart, relative to the loss.
MOST = 1e-2


def main() -> None:
    """Count, measure and write it down."""
    setting, given = arguments(
        __doc__,
        counted={"choices": COUNTED, "nargs": "*", "default": COUNTED},
        size={"choices": tuple(TIMED), "nargs": "*", "default": list(TIMED)},
        store={"choices": STORES, "default": "bfloat16"},
        of={"choices": get_args(Of), "default": "vit"},
    )
    for argument in given.counted:
        print(counted(validate(get_config(argument)), given.of), flush=True)
    name = "features" if given.of == "vit" else "features-qformer"
    report(setting, name, [step(setting, size, given.store, given.of) for size in given.size])


def counted(config: RunConfig, of: Of) -> str:
    """Say what the features of a video take, and which products a step from them leaves out."""
    config = replace(
        config,
        data=replace(config.data, batch=1),
        model=replace(config.model, ln_vision=NORM[of]),
        weights=replace(config.weights, base=""),
    )
    mesh = make_mesh("single")
    with jax.set_mesh(mesh):
        shapes = Shapes(config, mesh)
        program, (state, frozen, batch, key) = train_step(shapes)
        frames, made = config.data.frames, made_by(config, shapes.sizes, "bfloat16", of)
        pixels = jax.ShapeDtypeStruct((1, frames, 0, 0, 3), jnp.uint8)
        means = jax.ShapeDtypeStruct((1, frames, made.means), jnp.float32) if made.means else None
        seen = Features(jax.ShapeDtypeStruct((1, frames, made.tokens, made.width), jnp.bfloat16), means=means)
        without = replace(batch, frames=pixels, features=seen)
        whole, rest = (count_flops(program.trace(state, frozen, each, key).jaxpr) / 1e12 for each in (batch, without))
    sizes = ", ".join(
        f"{frames * made_by(config, shapes.sizes, store, of).bytes_a_frame / 1e6:.1f} MB in {store}" for store in STORES
    )
    return (
        f"{config.data.dataset}, stage {config.stage}, full: {frames} frames take {sizes}; a step of one video "
        f"{whole:.1f} TFLOP, from features {rest:.1f}: {whole / rest:.2f}x"
    )


def step(setting: Setting, size: str, store: Store, of: Of) -> Row:
    """Compare the steps of a batch."""
    argument, videos = TIMED[size]
    config = get_config(argument)
    config.update(
        {
            "mesh": "single",
            "data": {"augment": False, "workers": 0, "batch": videos},
            "model": {"compute_dtype": setting.dtype, "frozen_dtype": setting.dtype, "ln_vision": NORM[of]},
            "weights": {"base": ""},
        }
    )
    run, names = validate(config), tokenizers.__path__[0]
    held = Tokenizers(load_t5(f"{names}/tiny_t5"), load_bert(f"{names}/tiny_bert"))
    sizes = calce_config(run, t5_vocab=len(held.t5), bert_vocab=len(held.bert))
    graph, trainable, frozen = build_model(sizes, run, make_mesh("single"))
    batch = one_batch(run, sizes, held)
    with_features = replace(batch.without_frames(), features=seen(graph, (trainable, frozen), batch, store, of))

    optimizer = make_optimizer(run.optimizer)
    programs = replace(step_config(run, run.text.answer_tokens), buckets=run.text.buckets[-1:])
    train = make_train_step(graph, programs, optimizer, lambda _: jnp.float32(run.schedule.peak))
    state, key = new_state(trainable, optimizer), jax.random.key(run.seed)
    ours, seconds = compiled(train, state, frozen, with_features, key)
    theirs, _ = compiled(train, state, frozen, batch, key)

    def losses_apart(ours: tuple[object, dict[str, jax.Array]], theirs: tuple[object, dict[str, jax.Array]]) -> str:
        own, other = (float(metrics["loss"]) for _, metrics in (ours, theirs))
        if not abs(own - other) < MOST * other:
            raise ValueError(f"losses are {own} and {other}: nothing to compare")
        return f"losses {own:.6f} and {other:.6f}"

    return compare(
        setting,
        f"step of {videos} x {run.data.frames} frames, size {size}, {setting.dtype}, features of {of} in {store}",
        lambda: ours(state, frozen, with_features, key),
        lambda: theirs(state, frozen, batch, key),
        other="from frames",
        agreement=losses_apart,
        compile_s=seconds,
        notes={"MB a video": run.data.frames * made_by(run, sizes, store, of).bytes_a_frame / 1e6},
    )


def one_batch(run: RunConfig, sizes: CalceConfig, held: Tokenizers) -> Batch:
    """Return a training batch of queries about one video, as the input pipeline makes it."""
    inputs = input_config(run, run.data.train_split, sizes, training=True)
    asked = [example(run.data.frames, sizes.vit.image_size, captions=4)] * inputs.batch_size
    return next(make_iterator(inputs, held.t5, held.bert, examples=asked))


def seen(graph: nnx.GraphDef, weights: tuple[nnx.State, nnx.State], batch: Batch, store: Store, of: Of) -> Features:
    """Return what is stored of a batch's frames, on the host."""

    @jax.jit
    def see(weights: tuple[nnx.State, nnx.State], frames: jax.Array) -> Features:
        model: Calce = nnx.merge(graph, *weights)
        tokens = model.see(frames)
        return stored(tokens if of == "vit" else model.look(tokens), store)

    return jax.device_get(see(weights, batch.frames))


if __name__ == "__main__":
    main()
