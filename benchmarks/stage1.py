"""Inference of stage 1 on one video against BLIP-2 of `transformers`: `python -m benchmarks.stage1`.

From the pixels of the frames in memory to the five best answers, with the settings of QVHighlights; see
`benchmarks.prediction`.
"""

from dataclasses import replace

from benchmarks.material import make_example, tiny_tokenizers
from benchmarks.models import make_jax_model, make_torch_model, random_weights
from benchmarks.paired import BenchmarkSettings, ComparisonRow, parse_args, report
from benchmarks.prediction import compare_prediction, make_selector
from calce_jax.batch import Batch
from calce_jax.config import AttentionImplementation, RunConfig, validate
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.models.calce_sizes import CalceConfig
from configs.calce import get_config


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__,
        size={"choices": ("small", "full")},
        frames={"type": int, "default": 75},
        attention={"choices": ("xla", "dpa", "flash"), "default": "xla"},
    )
    size = args.size or ("small" if settings.device == "cpu" else "full")
    report(settings, "stage1", [compare_stage1(settings, size, args.frames, args.attention)])


def compare_stage1(
    settings: BenchmarkSettings, size: str, frames: int, attention: AttentionImplementation
) -> ComparisonRow:
    """Compare inference on one query."""
    run = validate(get_config(f"qvhighlights,stage=1,size={size}"))
    run = replace(run, data=replace(run.data, frames=frames))
    model_config = CalceConfig.from_name(size, None, settings.dtype, t5_vocab=0, bert_vocab=0).with_attention(attention)
    weights = random_weights(model_config)
    batch = make_query_batch(run, model_config)
    model = make_jax_model(weights, settings)
    name = f"stage 1 of one video of {frames} frames, size {size}, attention {attention}"
    selection = make_selector(model, run)(batch)
    blip2 = make_torch_model(weights, settings)
    return compare_prediction(settings, name, model, blip2, run=run, batch=batch, selection=selection)


def make_query_batch(run: RunConfig, model_config: CalceConfig) -> Batch:
    """Return a batch of one query from the input pipeline, with the tiny tokenizers."""
    inputs = input_config(run, run.data.eval_split, model_config, training=False)
    examples = [make_example(run.data.frames, model_config.vit.image_size, captions=16)]
    inputs, tokenizers = replace(inputs, batch_size=1, num_workers=0), tiny_tokenizers()
    return next(make_iterator(inputs, tokenizers.t5, tokenizers.bert, examples=examples))


if __name__ == "__main__":
    main()
