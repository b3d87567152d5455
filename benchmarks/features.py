"""A training step from stored features against one from frames: `python -m benchmarks.features`.

Both are the step that `calce train` compiles, from a batch on the host, with the longest prompt length only. With
`--of=qformer` both have a frozen `ln_vision`. First, two numbers that do not depend on the machine are printed for
every run at full size: bytes per video, and FLOPs of the matrix products of a step.
"""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.aot.programs import AbstractRun, train_step
from benchmarks.material import make_example, tiny_tokenizers
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, compile_program, parse_args, report
from calce_jax.batch import Batch, Features
from calce_jax.checkpoints.restore import calce_config, load_weights
from calce_jax.config import RunConfig, validate
from calce_jax.distributed.param_names import Params
from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.prediction import step_config
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.feature_fingerprint import make_feature_metadata
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.feature_codec import FeatureSource, StorageDtype, quantize
from calce_jax.models.structure import trace_model
from calce_jax.text.tokenizers import Tokenizers
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import make_train_step
from configs.calce import get_config

LN_VISION_BY_SOURCE = {"vit": "trained", "qformer": "frozen"}
STORAGE_DTYPES: tuple[StorageDtype, ...] = ("float32", "bfloat16", "int8")
COUNTED_RUNS = tuple(f"{name},stage={stage},size=full" for name in ("qvhighlights", "charades_sta") for stage in (1, 2))
# By size: the preset, and the videos of a batch.
TIMED_RUNS = {"tiny": ("shapes,stage=1,size=tiny", 8), "small": ("qvhighlights,stage=1,size=small", 1)}
# Tolerated difference of the losses from bfloat16 features and from frames, relative to the loss.
MAX_LOSS_DIFFERENCE = 1e-2


def main() -> None:
    """Print sizes and FLOPs, run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__,
        counted={"choices": COUNTED_RUNS, "nargs": "*", "default": COUNTED_RUNS},
        size={"choices": tuple(TIMED_RUNS), "nargs": "*", "default": list(TIMED_RUNS)},
        store={"choices": STORAGE_DTYPES, "default": "bfloat16"},
        of={"choices": get_args(FeatureSource), "default": "vit"},
    )
    for argument in args.counted:
        print(describe_costs(validate(get_config(argument)), args.of), flush=True)
    name = "features" if args.of == "vit" else "features-qformer"
    report(settings, name, [compare_step(settings, size, args.store, args.of) for size in args.size])


def describe_costs(config: RunConfig, source: FeatureSource) -> str:
    """Return the size of the features of a video and the TFLOP of a step with and without them, as a line of text."""
    config = replace(
        config,
        data=replace(config.data, batch=1, group=1),
        model=replace(config.model, ln_vision=LN_VISION_BY_SOURCE[source]),
        weights=replace(config.weights, base=""),
    )
    mesh = make_mesh("single")
    with jax.set_mesh(mesh):
        abstract_run = AbstractRun(config, mesh)
        step = train_step(abstract_run)
        program, (state, frozen, batch, key) = step.function, step.arguments
        frames, metadata = (
            config.data.frames,
            make_feature_metadata(config, abstract_run.model_config, "bfloat16", source),
        )
        pixels = jax.ShapeDtypeStruct((1, frames, 0, 0, 3), jnp.uint8)
        means = jax.ShapeDtypeStruct((1, frames, metadata.means), jnp.float32) if metadata.means else None
        stored_features = Features(
            jax.ShapeDtypeStruct((1, frames, metadata.tokens, metadata.width), jnp.bfloat16), means=means
        )
        feature_batch = replace(batch, frames=pixels, features=stored_features)
        full_tflop, feature_tflop = (
            count_flops(program.trace(state, frozen, step_batch, key).jaxpr) / 1e12
            for step_batch in (batch, feature_batch)
        )
    bytes_per_frame = {
        store: make_feature_metadata(config, abstract_run.model_config, store, source).bytes_per_frame
        for store in STORAGE_DTYPES
    }
    sizes = ", ".join(f"{frames * size / 1e6:.1f} MB in {store}" for store, size in bytes_per_frame.items())
    return (
        f"{config.data.dataset}, stage {config.stage}, full: {frames} frames take {sizes}; a step of one video "
        f"{full_tflop:.1f} TFLOP, from features {feature_tflop:.1f}: {full_tflop / feature_tflop:.2f}x"
    )


def compare_step(
    settings: BenchmarkSettings, size: str, storage_dtype: StorageDtype, source: FeatureSource
) -> ComparisonRow:
    """Compare training steps on one batch."""
    argument, videos = TIMED_RUNS[size]
    config = get_config(argument)
    config.update(
        {
            "mesh": "single",
            "data": {"augment": False, "workers": 0, "batch": videos},
            "model": {
                "compute_dtype": settings.dtype,
                "frozen_dtype": settings.dtype,
                "ln_vision": LN_VISION_BY_SOURCE[source],
            },
            "weights": {"base": ""},
        }
    )
    run, tokenizers = validate(config), tiny_tokenizers()
    model_config = calce_config(run, t5_vocab=len(tokenizers.t5), bert_vocab=len(tokenizers.bert))
    trainable, frozen = load_weights(model_config, run, make_mesh("single"))
    graph = trace_model(model_config, run.model.frozen_dtype)[0]
    batch = make_batch(run, model_config, tokenizers)
    with_features = replace(
        batch.without_frames(), features=encode_features(graph, (trainable, frozen), batch, storage_dtype, source)
    )

    optimizer = make_optimizer(run.optimizer)
    programs = replace(step_config(run, run.text.answer_tokens), buckets=run.text.buckets[-1:])
    train = make_train_step(graph, programs, optimizer, lambda _: jnp.float32(run.schedule.peak))
    state, key = create_train_state(trainable, optimizer), jax.random.key(run.seed)
    ours, seconds = compile_program(train, state, frozen, with_features, key)
    theirs, _ = compile_program(train, state, frozen, batch, key)

    def losses_apart(ours: tuple[object, dict[str, jax.Array]], theirs: tuple[object, dict[str, jax.Array]]) -> str:
        own, other = (float(metrics["loss"]) for _, metrics in (ours, theirs))
        if not abs(own - other) < MAX_LOSS_DIFFERENCE * other:
            raise ValueError(f"losses are {own} and {other}: not the same computation")
        return f"losses {own:.6f} and {other:.6f}"

    features_name = f"{source} features in {storage_dtype}"
    return compare(
        settings,
        f"step of {videos} x {run.data.frames} frames, size {size}, {settings.dtype}, {features_name}",
        lambda: ours(state, frozen, with_features, key),
        lambda: theirs(state, frozen, batch, key),
        other="from frames",
        agreement=losses_apart,
        compile_s=seconds,
        notes={
            "MB a video": run.data.frames
            * make_feature_metadata(run, model_config, storage_dtype, source).bytes_per_frame
            / 1e6
        },
    )


def make_batch(run: RunConfig, model_config: CalceConfig, tokenizers: Tokenizers) -> Batch:
    """Return a training batch of the input pipeline, of queries about one video."""
    inputs = input_config(run, run.data.train_split, model_config, training=True)
    examples = [make_example(run.data.frames, model_config.vit.image_size, captions=4)] * inputs.batch_size
    return next(make_iterator(inputs, tokenizers.t5, tokenizers.bert, examples=examples))


def encode_features(
    graph: nnx.GraphDef,
    weights: tuple[Params, Params],
    batch: Batch,
    storage_dtype: StorageDtype,
    source: FeatureSource,
) -> Features:
    """Return the stored features of the frames of a batch, on the host."""

    @jax.jit
    def encode(weights: tuple[Params, Params], frames: jax.Array) -> Features:
        model: Calce = nnx.merge(graph, *weights)
        tokens = model.encode_frames(frames)
        return quantize(tokens if source == "vit" else model.encode_queries(tokens), storage_dtype)

    return jax.device_get(encode(weights, batch.frames))


if __name__ == "__main__":
    main()
