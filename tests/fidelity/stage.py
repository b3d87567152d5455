"""Recorded stages of the whole model: the model, the batch, the prompt selection, and the recorded arrays."""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.checkpoints.convert.calce import key_mapping
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.keyframes.reference_noise import ReferenceNoise
from calce_jax.models.selection import PromptSelection, SelectionConfig
from calce_jax.text.prompt import Caption, PromptWriter, TextSizes, mentions_speech
from tests.fidelity import sizes
from tests.fidelity.folder import RecordedArrays
from tests.fidelity.selection import selected_frames, uniform_draws
from tests.fidelity.text import Tokenizers
from tests.helpers import recordings_io

MAX_BERT_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Stage:
    """The recordings of one stage, and our model and batch for it."""

    number: int
    meta: dict[str, Any]
    arrays: RecordedArrays
    model: Calce
    vision_tokens: jax.Array  # (B, T, P, D)
    batch: Batch
    selection: SelectionConfig
    tokenizer: Any

    def recorded(self, name: str) -> np.ndarray:
        """Return a recorded array of this stage."""
        return self.arrays[f"s{self.number}_{name}"]

    def recorded_like(self, pattern: str) -> np.ndarray:
        """Return the recorded array of this stage whose name, in which there is a size, matches a regular expression.

        Raises:
          KeyError: none matches.
        """
        for name in self.arrays:
            if re.fullmatch(rf"s{self.number}_{pattern}", name):
                return self.arrays[name]
        raise KeyError(f"{self.arrays.path.name} holds no s{self.number}_{pattern}")

    def names(self, kind: str) -> list[str]:
        """Return the parameters with a recorded array of a kind, such as "grad"."""
        prefix = f"s{self.number}_{kind}/"
        return [name.removeprefix(prefix) for name in self.arrays if name.startswith(prefix)]


def load_calce(tensors: dict[str, np.ndarray], settings: Mapping[str, Any]) -> Calce:
    """Return the recorded CALCE with adapters."""
    words = tensors["Qformer.bert.embeddings.word_embeddings.weight"]
    qformer = sizes.qformer(tensors, settings["qformer"], vocab=len(words))
    config = CalceConfig(
        sizes.vit(tensors, settings["vit"]),
        qformer,
        sizes.t5(tensors, "t5_model.base_model.model."),
        sizes.lora(tensors, settings.get("lora_scaling", 1.0)),
        compressed_query_tokens=len(tensors["query_proj.weight"]),
    )
    abstract = nnx.eval_shape(lambda: Calce(config, rngs=nnx.Rngs(0)))
    return recordings_io.load_state_dict(
        abstract, key_mapping(lora=True, cross_attention_frequency=qformer.cross_attention_frequency), tensors
    )


def load_batch(
    meta: dict[str, Any], times: np.ndarray, *, answer_tokens: int, stage: int, tokenizers: Tokenizers, model: Calce
) -> Batch:
    """Return the recorded samples as a batch with black frames, as pixels were recorded normalised.

    Args:
      meta: of the stage.
      times: of the frames, seconds (B, T).
      answer_tokens: A.
      stage: 1 or 2.
      tokenizers: of T5 and BERT.
      model: limits the BERT tokens.
    """
    samples = meta["samples"]
    count, frames = times.shape
    captions = max(1, *map(len, samples["subtitles"]))
    bert_tokens = min(MAX_BERT_TOKENS, model.qformer.config.max_positions)
    text_sizes = TextSizes(
        frames, captions, bert_tokens, text_tokens=400 + 2 * frames + 64 * captions, answer_tokens=answer_tokens
    )
    writer = PromptWriter(*tokenizers, text_sizes, stage=stage, behaviour="reference")  # pyright: ignore[reportArgumentType]
    stage1_texts = samples.get("stage1_result") or ["[[0, 1]]"] * count
    windows = [_windows(text) for text in stage1_texts]
    max_windows = max(1, *map(len, windows))
    rows = []
    for i in range(count):
        query = samples["query_prompt"][i].removeprefix("Query: ").removesuffix("\n")
        items = samples["item_prompt"][i].removeprefix("Items: ").removesuffix("\n").split(",")
        captions_of_row = [
            Caption(caption["start"], caption["end"], caption["text"]) for caption in samples["subtitles"][i]
        ]
        duration, intervals = meta["duration"][i], samples["subtitle_durations"][i]
        text = writer.write(
            query,
            items,
            times[i],
            duration,
            captions_of_row,
            true_windows=_windows(samples["relevant_windows"][i]),
            stage1_windows=windows[i],
        )
        rows.append(
            {
                "frames": np.zeros((frames, 1, 1, 3), np.uint8),
                "frame_mask": np.ones(frames, bool),
                "times": np.asarray(times[i], np.float32),
                "duration": np.float32(duration),
                "tokens": text.tokens,
                "spans": text.spans,
                "query_bert_tokens": text.query_bert_tokens,
                "caption_bert_tokens": text.caption_bert_tokens,
                "caption_positions": text.caption_positions,
                "is_speech_query": np.bool_(bool(intervals) and mentions_speech(query, "reference")),
                "has_speech": mark_speech_frames(intervals, duration, frames),
                "stage1_windows": np.asarray(windows[i] + [[0, 0]] * (max_windows - len(windows[i])), np.float32),
                "window_mask": np.arange(max_windows) < len(windows[i]),
                "labels": text.labels,
                "row_mask": np.bool_(True),
                "example_index": np.int32(i),
                "row_flags": np.int32(0),
            }
        )
    return Batch(**{name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]})


def select_prompts(stage: Stage, draws: Sequence[Any], expected: list[Any]) -> tuple[PromptSelection, list[Any]]:
    """Select frames and captions with the recorded draws.

    The draws were recorded in one sequence for the whole batch. A sample gets the fewest of the remaining draws with
    which its frames equal the recorded ones, or all of them if no number does.

    Returns:
      The prompt selection, and [key frames, other kept frames] of each sample.
    """
    rows, frames = stage.batch.frame_mask.shape
    num_draws = len(draws) // 2 + 1

    @jax.jit
    def select(vision_tokens: jax.Array, batch: Batch, draws: jax.Array) -> PromptSelection:
        noise = ReferenceNoise(density_noise=jnp.zeros((*batch.frame_mask.shape[:1], 2, frames)), removal_draws=draws)
        return stage.model.select(vision_tokens, batch, stage.selection, reference_noise=noise)

    if not draws:
        prompt_selection = jax.jit(
            lambda vision_tokens, batch: stage.model.select(vision_tokens, batch, stage.selection)
        )(stage.vision_tokens, stage.batch)
        return prompt_selection, [selected_frames(prompt_selection.frame_plan, i) for i in range(rows)]
    selections, plans, remaining = [], [], list(draws)
    for i in range(rows):
        vision_tokens, sample = stage.vision_tokens[i : i + 1], jax.tree.map(lambda a, i=i: a[i : i + 1], stage.batch)
        for num_used in [*range(0, len(remaining) + 1, 2), len(remaining)]:
            selection = select(vision_tokens, sample, jnp.asarray(uniform_draws(remaining[:num_used], num_draws))[None])
            if selected_frames(selection.frame_plan, 0) == expected[i]:
                break
        remaining = remaining[num_used:]
        selections.append(selection)
        plans.append(selected_frames(selection.frame_plan, 0))
    return jax.tree.map(lambda *a: jnp.concatenate(a), *selections), plans


def recorded_calls(meta: Mapping[str, Any], name: str, stage: int) -> list[list[list[list[int]]]]:
    """Return [key frames, other frames] of each sample, by recorded call.

    Stage 1 recorded every call of a function, as the key frames of all samples and then their other frames; stage 2
    recorded the samples of a single call.
    """
    recorded = meta[name]
    return [[list(pair) for pair in zip(*call, strict=True)] for call in recorded] if stage == 1 else [recorded]


def _windows(text: Any) -> list[list[float]]:
    """Parse windows that were recorded as text."""
    return ast.literal_eval(text) if isinstance(text, str) else text
