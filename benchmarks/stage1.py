"""All of stage 1 for one video beside `transformers`' BLIP-2 doing the same: `python -m benchmarks.stage1`.

From the pixels of a video's frames in memory to the five best answers, with the settings of QVHighlights. The other
side is its vision tower, Q-Former, projections and `generate` (torch). It is told which frames are key frames, which
captions are used and what stands where in the prompt, as ours found out, and pays nothing for it: neither clustering
nor the comparison of captions. Adapters are merged on both sides.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.generation import same_answers
from benchmarks.material import example
from benchmarks.models import in_jax, in_torch, random_weights
from benchmarks.paired import Row, Setting, arguments, compare, compiled, report
from calce_jax.batch import Batch
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.config import RunConfig, validate
from calce_jax.inference.predict_step import BatchPrediction, make_predict, step_config
from calce_jax.input_pipeline import make_iterator
from calce_jax.input_pipeline.batches import input_config
from calce_jax.models.attention import Implementation
from calce_jax.models.calce import Calce, CalceConfig, split
from calce_jax.models.vit import MEAN, STD
from calce_jax.text.tokenizers import load_bert, load_t5
from configs.calce import get_config
from data import tokenizers

# Enough for the answer to a query with a dozen moments; what a run writes depends on its videos.
ANSWER = 70


def main() -> None:
    """Measure and write it down."""
    setting, given = arguments(
        __doc__,
        size={"choices": ("small", "full")},
        frames={"type": int, "default": 75},
        attention={"choices": ("xla", "dpa", "flash"), "default": "xla"},
    )
    size = given.size or ("small" if setting.device == "cpu" else "full")
    report(setting, "stage1", [stage1(setting, size, given.frames, given.attention)])


def stage1(setting: Setting, size: str, frames: int, attention: Implementation) -> Row:
    """Compare the answers to one query."""
    run = validate(get_config(f"qvh,stage=1,size={size}"))
    run = replace(run, data=replace(run.data, frames=frames))
    sizes = CalceConfig.named(size, None, setting.dtype, t5_vocab=0, bert_vocab=0).attending(attention)
    weights = random_weights(sizes)
    batch = one_query(run, sizes)
    model = in_jax(weights, setting)
    graph, trainable, frozen = split(model, setting.dtype)
    steps = step_config(run, ANSWER)

    @jax.jit
    def needed(trainable: nnx.State, frozen: nnx.State, batch: Batch) -> jax.Array:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return model.read(model.see(batch.frames), batch, steps.selection).needed

    # A run compiles a branch for each prompt length. Here one is taken, so the others need not be waited for.
    length = next(length for length in steps.buckets if length >= int(needed(trainable, frozen, batch)[0]))
    predict = make_predict(graph, replace(steps, buckets=(length,)))
    program, seconds = compiled(predict, trainable, frozen, batch)
    found: BatchPrediction = program(trainable, frozen, batch)

    def ours() -> jax.Array:
        return program(trainable, frozen, batch).answers.tokens

    return compare(
        setting,
        f"stage 1 of one video of {frames} frames, size {size}, {setting.dtype}, attention {attention}",
        ours,
        their_way(weights, setting, batch, layout(model, batch, found)),
        other="transformers' BLIP-2",
        agreement=same_answers,
        compile_s=seconds,
        program=program,
        notes={"prompt tokens": float(found.reading.needed[0]), "prompt length": float(length)},
    )


def one_query(run: RunConfig, sizes: CalceConfig) -> Batch:
    """Return a batch of one query, as the input pipeline makes it, with the small tokenizers."""
    inputs = input_config(run, run.data.eval_split, sizes, training=False)
    folder = tokenizers.__path__[0]
    asked = [example(run.data.frames, sizes.vit.image_size, captions=16)]
    inputs = replace(inputs, batch_size=1, workers=0)
    return next(make_iterator(inputs, load_t5(f"{folder}/tiny_t5"), load_bert(f"{folder}/tiny_bert"), examples=asked))


def layout(model: Calce, batch: Batch, found: BatchPrediction) -> dict[str, np.ndarray]:
    """Return what stands at each position of the prompt: its token, or its place among the described frames."""
    needed, queries = int(found.reading.needed[0]), model.config.qformer.queries
    packed = jax.tree.map(np.asarray, jax.jit(lambda: model.packed(batch, found.reading, needed))())
    place = packed.slot * (queries + model.config.compressed) + packed.query + np.where(packed.key, 0, queries)
    return {"text": packed.text, "token": packed.token.astype(np.int64), "place": np.where(packed.text, 0, place)}


def their_way(weights: Weights, setting: Setting, batch: Batch, prompt: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Return what does the same with `transformers`' modules."""
    import torch  # noqa: PLC0415

    model, sizes = in_torch(weights, setting), weights.sizes
    dtype, device = model.query_tokens.dtype, setting.torch_device
    kernel, bias = (
        torch.from_numpy(weights.base[f"query_proj/{name}"].read()).to(device, dtype) for name in ("kernel", "bias")
    )
    mean, std = (torch.tensor(of, device=device)[:, None, None] for of in (MEAN, STD))
    text, token, at = (torch.from_numpy(np.array(prompt[name])).to(device) for name in ("text", "token", "place"))
    ones = torch.ones(token.shape, device=device).long()
    frames = torch.from_numpy(np.array(batch.frames[0]))

    @torch.no_grad()
    def answer() -> torch.Tensor:
        pixels = (frames.to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
        seen = model.vision_model(pixel_values=pixels.to(dtype)).last_hidden_state
        queries = model.qformer(
            query_embeds=model.query_tokens.expand(len(seen), -1, -1), encoder_hidden_states=seen
        ).last_hidden_state.to(dtype)
        few = (queries.transpose(1, 2) @ kernel + bias).transpose(1, 2)
        described = model.language_projection(torch.cat([queries, few], dim=1)).reshape(-1, sizes.t5.width)
        words = model.language_model.get_input_embeddings()(token)
        return model.language_model.generate(
            inputs_embeds=torch.where(text[:, :, None], words, described[at]),
            attention_mask=ones,
            num_beams=5,
            num_return_sequences=5,
            do_sample=False,
            max_new_tokens=ANSWER,
        )

    return answer


if __name__ == "__main__":
    main()
