"""Inference of stage 1 on one video against BLIP-2 of `transformers`: `python -m benchmarks.stage1`.

From the pixels of the frames in memory to the five best answers, with the settings of QVHighlights. The other side is
the vision tower, Q-Former, projections and `generate` of transformers (torch). It is given the prompt layout of ours
(key frames, used captions, positions), so it does neither clustering nor caption retrieval. Adapters are merged on both
sides.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.generation import count_equal_answers
from benchmarks.material import make_example, tiny_tokenizers
from benchmarks.models import make_jax_model, make_torch_model, random_weights
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, compile_program, parse_args, report
from calce_jax.batch import Batch
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.config import RunConfig, validate
from calce_jax.inference.predict_step import BatchPrediction, make_predict, step_config
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.models.attention import AttentionImplementation
from calce_jax.models.calce import Calce, CalceConfig, split_params
from calce_jax.models.vit import CLIP_MEAN, CLIP_STD
from configs.calce import get_config

# Enough for an answer with a dozen moments; in a run it depends on the longest video.
MAX_ANSWER_TOKENS = 70


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
    graph, trainable, frozen = split_params(model, settings.dtype)
    program_config = step_config(run, MAX_ANSWER_TOKENS)

    @jax.jit
    def prompt_lengths(trainable: nnx.State, frozen: nnx.State, batch: Batch) -> jax.Array:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return model.select(model.encode_frames(batch.frames), batch, program_config.selection).prompt_lengths

    # A run compiles a branch for each prompt length; here only the one that is used.
    length = next(
        length for length in program_config.buckets if length >= int(prompt_lengths(trainable, frozen, batch)[0])
    )
    predict = make_predict(graph, replace(program_config, buckets=(length,)))
    program, seconds = compile_program(predict, trainable, frozen, batch)
    prediction: BatchPrediction = program(trainable, frozen, batch)

    def ours() -> jax.Array:
        return program(trainable, frozen, batch).answers.tokens

    return compare(
        settings,
        f"stage 1 of one video of {frames} frames, size {size}, {settings.dtype}, attention {attention}",
        ours,
        make_torch_pipeline(weights, settings, batch, prompt_layout(model, batch, prediction)),
        other="transformers' BLIP-2",
        agreement=count_equal_answers,
        compile_s=seconds,
        program=program,
        notes={"prompt tokens": float(prediction.prompt_selection.prompt_lengths[0]), "prompt length": float(length)},
    )


def make_query_batch(run: RunConfig, model_config: CalceConfig) -> Batch:
    """Return a batch of one query from the input pipeline, with the tiny tokenizers."""
    inputs = input_config(run, run.data.eval_split, model_config, training=False)
    examples = [make_example(run.data.frames, model_config.vit.image_size, captions=16)]
    inputs, tokenizers = replace(inputs, batch_size=1, num_workers=0), tiny_tokenizers()
    return next(make_iterator(inputs, tokenizers.t5, tokenizers.bert, examples=examples))


def prompt_layout(model: Calce, batch: Batch, prediction: BatchPrediction) -> dict[str, np.ndarray]:
    """Return for each prompt position whether it is text, its T5 id, and its index among frame embeddings."""
    length, queries = int(prediction.prompt_selection.prompt_lengths[0]), model.config.qformer.query_tokens
    layout = jax.tree.map(
        np.asarray, jax.jit(lambda: model.prompt_layout(batch, prediction.prompt_selection, length))()
    )
    embeddings_per_frame = queries + model.config.compressed_query_tokens
    frame_index = layout.slot * embeddings_per_frame + layout.query_token + np.where(layout.is_keyframe, 0, queries)
    return {
        "is_text": layout.is_text,
        "token_id": layout.token_id.astype(np.int64),
        "frame_index": np.where(layout.is_text, 0, frame_index),
    }


def make_torch_pipeline(
    weights: Weights, settings: BenchmarkSettings, batch: Batch, prompt: dict[str, np.ndarray]
) -> Callable[[], Any]:
    """Return the same inference with the modules of transformers."""
    import torch  # noqa: PLC0415

    model, model_config = make_torch_model(weights, settings), weights.model_config
    dtype, device = model.query_tokens.dtype, settings.torch_device
    kernel, bias = (
        torch.from_numpy(weights.base[f"query_proj/{name}"].read()).to(device, dtype) for name in ("kernel", "bias")
    )
    mean, std = (torch.tensor(channel_values, device=device)[:, None, None] for channel_values in (CLIP_MEAN, CLIP_STD))
    is_text, token_id, frame_index = (
        torch.from_numpy(np.array(prompt[name])).to(device) for name in ("is_text", "token_id", "frame_index")
    )
    mask = torch.ones(token_id.shape, device=device).long()
    frames = torch.from_numpy(np.array(batch.frames[0]))

    @torch.no_grad()
    def generate() -> torch.Tensor:
        pixels = (frames.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
        image_tokens = model.vision_model(pixel_values=pixels.to(dtype)).last_hidden_state
        queries = model.qformer(
            query_embeds=model.query_tokens.expand(len(image_tokens), -1, -1), encoder_hidden_states=image_tokens
        ).last_hidden_state.to(dtype)
        compressed = (queries.transpose(1, 2) @ kernel + bias).transpose(1, 2)
        projected = model.language_projection(torch.cat([queries, compressed], dim=1)).reshape(
            -1, model_config.t5.width
        )
        words = model.language_model.get_input_embeddings()(token_id)
        return model.language_model.generate(
            inputs_embeds=torch.where(is_text[:, :, None], words, projected[frame_index]),
            attention_mask=mask,
            num_beams=5,
            num_return_sequences=5,
            do_sample=False,
            max_new_tokens=MAX_ANSWER_TOKENS,
        )

    return generate


if __name__ == "__main__":
    main()
