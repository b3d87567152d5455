"""Prediction against BLIP-2 of `transformers`, both with the same weights: from pixels to the five best answers.

The other side is the vision tower, Q-Former, projections and `generate` of transformers (torch). It is given the prompt
layout of ours (key frames, used captions, positions), so it does neither clustering nor caption retrieval. Adapters are
merged on both sides.

Dimensions: B videos, T frames, S slots of the plan, Q query tokens, J = Q + query tokens of a compressed frame, L
prompt length, E T5 width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.generation import check_scores, count_equal_answers
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, compile_counted
from benchmarks.towers import held_bytes
from calce_jax.batch import Batch
from calce_jax.config import RunConfig
from calce_jax.inference.predict_step import make_predict
from calce_jax.inference.prediction import BatchPrediction, step_config
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.calce import Calce
from calce_jax.models.selection import PromptSelection
from calce_jax.models.structure import split_params
from calce_jax.models.vit import CLIP_MEAN, CLIP_STD

# Enough for an answer with a dozen moments; in a run it depends on the longest video.
MAX_ANSWER_TOKENS = 70


def make_selector(model: Calce, run: RunConfig) -> Callable[[Batch], PromptSelection]:
    """Return a function that selects key frames and captions of a host batch; a compiled program does it row by row."""
    graph, params = nnx.split(model)
    selection = step_config(run, MAX_ANSWER_TOKENS).selection

    @jax.jit
    def select(params: nnx.State, batch: Batch) -> PromptSelection:
        model: Calce = nnx.merge(graph, params)
        return model.select(model.encode_frames(batch.frames), batch, selection)

    def select_all(batch: Batch) -> PromptSelection:
        rows = [jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], batch) for row in range(len(batch.row_mask))]
        selections = [jax.device_get(select(params, row)) for row in rows]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *selections)

    return select_all


def fit_length(run: RunConfig, selection: PromptSelection) -> int:
    """Return the compiled prompt length that a run would choose for these prompts."""
    longest = int(selection.prompt_lengths.max())
    return next((length for length in run.text.buckets if length >= longest), run.text.buckets[-1])


def compare_prediction(
    settings: BenchmarkSettings,
    name: str,
    model: Calce,
    blip2: Any,
    *,
    run: RunConfig,
    batch: Batch,
    selection: PromptSelection,
) -> ComparisonRow:
    """Compare the prediction of a batch.

    Args:
      settings: rounds and device.
      name: of the row; the dtype is added.
      model: ours, without adapters.
      blip2: that of `benchmarks.models.make_torch_model`, with the same weights.
      run: stage, selection and prompt lengths.
      batch: on the host.
      selection: from `make_selector`. A run compiles a branch for each prompt length; here only the one that is used.
    """
    graph, trainable, frozen = split_params(model, settings.dtype)
    length = fit_length(run, selection)
    predict = make_predict(graph, replace(step_config(run, MAX_ANSWER_TOKENS), buckets=(length,)))
    program = compile_counted(
        predict,
        trainable,
        frozen,
        batch,
        while_trip_count=MAX_ANSWER_TOKENS,
        options=settings.compiler_options,
    )
    prediction: BatchPrediction = program.run(trainable, frozen, batch)
    pipeline = TorchPipeline(settings, blip2, model, batch=batch, selection=prediction.prompt_selection, length=length)

    def agreement(ours: BeamSearchOutput, theirs: Any) -> str:
        import torch  # noqa: PLC0415

        with torch.no_grad():
            inputs = {"inputs_embeds": pipeline.embed(), "attention_mask": pipeline.mask}
        return (
            f"{count_equal_answers(ours.tokens, theirs)}; {check_scores(settings, ours, blip2.language_model, inputs)}"
        )

    return compare(
        settings,
        f"{name}, {settings.dtype}",
        lambda: program.run(trainable, frozen, batch).answers,
        pipeline.generate,
        other="transformers' BLIP-2",
        agreement=agreement,
        compile_s=program.compile_s,
        program=program.run,
        tflop=program.tflop,
        their_bytes=held_bytes(blip2),
        notes={
            "prompt tokens": float(prediction.prompt_selection.prompt_lengths.max()),
            "prompt length": float(length),
        },
    )


@dataclass(frozen=True)
class PromptIndices:
    """Where each position of a prompt comes from, numpy arrays (B, L), padded to the longest prompt of the batch.

    Fields:
      mask: False where padded.
      is_text: whether it is a token of text.
      token_id: its T5 id.
      frame_index: otherwise its index among the T J embeddings of the video's frames.
    """

    mask: np.ndarray
    is_text: np.ndarray
    token_id: np.ndarray
    frame_index: np.ndarray


def prompt_indices(model: Calce, batch: Batch, selection: PromptSelection, length: int) -> PromptIndices:
    """Return the origin of the positions of prompts that are cut to `length`."""
    queries = model.config.qformer.query_tokens
    embeddings_per_frame = queries + model.config.compressed_query_tokens
    longest = min(int(selection.prompt_lengths.max()), length)
    layout = jax.tree.map(
        np.asarray, jax.jit(partial(_layout, nnx.graphdef(model), longest))(nnx.state(model), batch, selection)
    )
    frame = np.take_along_axis(np.asarray(selection.frame_plan.frame_index), layout.slot, axis=1)
    frame_index = frame * embeddings_per_frame + layout.query_token + np.where(layout.is_keyframe, 0, queries)
    is_visual = layout.mask & ~layout.is_text
    return PromptIndices(
        layout.mask,
        layout.is_text,
        layout.token_id.astype(np.int64),
        np.where(is_visual, frame_index, 0).astype(np.int64),
    )


def _layout(graph: Any, length: int, params: nnx.State, batch: Batch, selection: PromptSelection) -> Any:
    return nnx.merge(graph, params).prompt_layout(batch, selection, length)


class TorchPipeline:
    """The same prediction with the modules of transformers.

    Args:
      settings: device and dtype.
      blip2: the model; its modules are read at every call, so that training can replace them.
      model: ours, whose `query_proj` BLIP-2 does not have.
      batch: on the host.
      selection: key frames and captions of ours.
      length: to which prompts are cut.
    """

    def __init__(
        self,
        settings: BenchmarkSettings,
        blip2: Any,
        model: Calce,
        *,
        batch: Batch,
        selection: PromptSelection,
        length: int,
    ):
        import torch  # noqa: PLC0415

        self.blip2, device = blip2, settings.torch_device
        self.dtype = getattr(torch, settings.dtype)
        # Through DLPack: on a GPU it does not pass the host.
        params: Any = model.query_proj
        self.query_proj = tuple(
            torch.from_dlpack(param[...]).to(device, self.dtype, copy=True) for param in (params.kernel, params.bias)
        )
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        indices = prompt_indices(model, batch, selection, length)
        self._is_text, self._token_id, self._frame_index = (
            torch.tensor(array, device=device) for array in (indices.is_text, indices.token_id, indices.frame_index)
        )
        self.mask = torch.tensor(indices.mask, device=device).long()
        self._frames, self._device = torch.from_numpy(np.array(batch.frames)), device

    def embed(self) -> Any:
        """Return the embeddings of the prompts, (B, L, E), from the pixels on the host."""
        import torch  # noqa: PLC0415

        frames = self._frames.to(self._device)
        pixels = (frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std
        image_tokens = self.blip2.vision_model(pixel_values=pixels.to(self.dtype)).last_hidden_state
        queries = self.blip2.qformer(
            query_embeds=self.blip2.query_tokens.expand(len(image_tokens), -1, -1), encoder_hidden_states=image_tokens
        ).last_hidden_state.to(self.dtype)
        kernel, bias = self.query_proj
        compressed = (queries.transpose(1, 2) @ kernel.to(self.dtype) + bias.to(self.dtype)).transpose(1, 2)
        projected = self.blip2.language_projection(torch.cat([queries, compressed], dim=1))
        projected = projected.reshape(len(frames), -1, projected.shape[-1])
        words = self.blip2.language_model.get_input_embeddings()(self._token_id)
        visual = projected.gather(1, self._frame_index[:, :, None].expand(-1, -1, projected.shape[-1]))
        return torch.where(self._is_text[:, :, None], words, visual.to(words.dtype)) * self.mask[:, :, None].to(
            words.dtype
        )

    def generate(self) -> Any:
        """Return the tokens of the five best answers of each prompt, (5 B, up to 1 + MAX_ANSWER_TOKENS)."""
        import torch  # noqa: PLC0415

        with torch.no_grad():
            return self.blip2.language_model.generate(
                inputs_embeds=self.embed(),
                attention_mask=self.mask,
                num_beams=5,
                num_return_sequences=5,
                do_sample=False,
                max_new_tokens=MAX_ANSWER_TOKENS,
            )
