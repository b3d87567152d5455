"""The training step of a run against the same in torch, both with LoRA on T5, from pixels to the next parameters.

torch computes under autocast, its trained parameters are float32 as ours, and its adapters are hooks on the linear
layers of transformers' T5: the arithmetic of `peft`, which is not needed. It is given the prompt layout of ours.
Dropout masks differ.

Dimensions: B videos, D features in, E features out, R rank.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.aot.flops import count_flops
from benchmarks.gpu.shared_weights import SharedModels
from benchmarks.paired import BenchmarkSettings, ComparisonRow, check_close, compare, compile_counted
from benchmarks.prediction import MAX_ANSWER_TOKENS, TorchPipeline, fit_length
from benchmarks.towers import held_bytes
from calce_jax.batch import Batch
from calce_jax.checkpoints.convert.calce import adapter_rows
from calce_jax.checkpoints.convert.mapping import LAYER_PLACEHOLDER
from calce_jax.config import RematPolicy, RunConfig
from calce_jax.inference.prediction import step_config
from calce_jax.models.selection import PromptSelection
from calce_jax.models.structure import split_params
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import compile_train_step, make_train_step

LEARNING_RATE = 1e-4


def compare_train_step(
    settings: BenchmarkSettings,
    name: str,
    models: SharedModels,
    *,
    run: RunConfig,
    batch: Batch,
    selection: PromptSelection,
    remat: RematPolicy,
) -> ComparisonRow:
    """Compare a micro-step that also steps the optimizer.

    Args:
      settings: rounds and device.
      name: of the row; dtype and remat are added.
      models: both.
      run: stage, selection, prompt lengths and optimizer.
      batch: on the host, with labels.
      selection: its key frames and captions, from `benchmarks.prediction.make_selector`.
      remat: what our backward pass recomputes; torch keeps everything.
    """
    length, key = fit_length(run, selection), jax.random.key(0)
    model = models.new_calce(adapters=True)
    graph, trainable, frozen = split_params(model, settings.dtype)
    optimizer = make_optimizer(replace(run.optimizer, accumulate=1), run.behaviour)
    state = create_train_state(trainable, optimizer)
    config = replace(step_config(run, MAX_ANSWER_TOKENS), buckets=(length,), remat=remat)
    step = make_train_step(graph, config, optimizer, lambda step: jnp.float32(LEARNING_RATE))
    options = settings.compiler_options
    program = compile_counted(compile_train_step(step, state, options), state, frozen, batch, key)
    # What is computed again is no work that is needed.
    plain = make_train_step(graph, replace(config, remat="none"), optimizer, lambda step: jnp.float32(LEARNING_RATE))
    tflop = count_flops(jax.jit(plain).trace(state, frozen, batch, key).jaxpr) / 1e12
    pipeline = TorchPipeline(settings, models.blip2, model, batch=batch, selection=selection, length=length)

    current = [state]  # each run continues from the one before

    def ours() -> jax.Array:
        current[0], metrics = program.run(current[0], frozen, batch, key)
        jax.block_until_ready(current[0])
        return metrics["loss"]

    with torch_training(settings, models, pipeline) as parameters:
        decay, no_decay = ([p for p in parameters if (p.ndim > 1) == matrix] for matrix in (True, False))
        groups = [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}]
        betas = (run.optimizer.beta1, run.optimizer.beta2)
        their_optimizer = torch.optim.AdamW(groups, LEARNING_RATE, betas, run.optimizer.eps, run.optimizer.weight_decay)
        labels = torch.from_numpy(np.array(batch.labels)).long().to(settings.torch_device)
        labels = labels.masked_fill(labels == 0, -100)

        def theirs() -> torch.Tensor:
            their_optimizer.zero_grad(set_to_none=True)
            with torch.autocast(settings.torch_device, torch.bfloat16, enabled=settings.dtype == "bfloat16"):
                loss = models.blip2.language_model(
                    inputs_embeds=pipeline.embed(), attention_mask=pipeline.mask, labels=labels
                ).loss
            loss.backward()
            their_optimizer.step()
            return loss.detach()

        trained_bytes = sum(parameter.nbytes for parameter in parameters)
        return compare(
            settings,
            f"{name}, {settings.dtype}, remat {remat}",
            ours,
            theirs,
            other="torch with LoRA",
            # The dropout masks differ, so the losses do.
            agreement=lambda a, b: "losses: " + check_close(a, b, max_difference=0.1),
            compile_s=program.compile_s,
            program=program.run,
            tflop=tflop,
            their_bytes=held_bytes(models.blip2) + 3 * trained_bytes,  # with both moments
            notes={"prompt length": float(length)},
        )


@contextmanager
def torch_training(
    settings: BenchmarkSettings, models: SharedModels, pipeline: TorchPipeline
) -> Iterator[list[torch.nn.Parameter]]:
    """Make BLIP-2 and a pipeline trainable while the context lasts; yields the trained parameters.

    They are float32 copies: projections, `ln_vision`, and an adapter at each linear layer of T5, as
    `calce_jax.models.structure.param_label` says.
    """
    blip2, query_proj = models.blip2, pipeline.query_proj
    previous = blip2.vision_model.post_layernorm, blip2.language_projection
    norm, projection = (copy.deepcopy(module).float() for module in previous)
    blip2.requires_grad_(False)
    own = [norm.weight, norm.bias, projection.weight, projection.bias]
    trained = [parameter.requires_grad_() for parameter in own]
    trained += [torch.nn.Parameter(models.tensors[f"query_proj/{name}"].clone()) for name in ("kernel", "bias")]
    blip2.vision_model.post_layernorm, blip2.language_projection = norm, projection
    pipeline.query_proj = tuple(trained[-2:])
    handles = []
    for name, (a, b) in _adapters(models).items():
        layer = blip2.language_model.get_submodule(name)
        handles.append(layer.register_forward_hook(_LoraHook(models, a, b)))
        trained += [a, b]
    blip2.language_model.train()  # dropout, in T5 alone
    try:
        yield trained
    finally:
        blip2.language_model.eval()
        for handle in handles:
            handle.remove()
        blip2.vision_model.post_layernorm, blip2.language_projection = previous
        pipeline.query_proj = query_proj


class _LoraHook:
    """Adds scale dropout(x) A B to what a linear layer returns."""

    def __init__(self, models: SharedModels, a: torch.nn.Parameter, b: torch.nn.Parameter):
        lora = models.model_config.lora
        assert lora is not None
        self._scale, self._dropout, self._a, self._b = lora.alpha / lora.rank, lora.dropout, a, b

    def __call__(self, layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Return the adapted output, (..., E), for the input (..., D)."""
        del layer
        low = torch.nn.functional.dropout(inputs[0], self._dropout) @ self._a.to(inputs[0].dtype)
        return output + (low @ self._b.to(low.dtype)) * self._scale


def _adapters(models: SharedModels) -> Mapping[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]:
    """Return new parameters A (D, R) and B (R, E) by the name of the linear layer in transformers' T5."""
    adapters: dict[str, dict[str, torch.nn.Parameter]] = {}
    for row in adapter_rows():
        stacked = models.tensors[f"t5/{row.param_names[0]}"]
        layer_name = row.torch_name.partition(".lora_")[0]
        for index in range(len(stacked)) if row.is_stacked else (None,):
            tensor = stacked if index is None else stacked[index]
            name = layer_name.replace(LAYER_PLACEHOLDER, str(index))
            adapters.setdefault(name, {})[row.param_names[0][-1]] = torch.nn.Parameter(tensor.clone())
    return {name: (pair["a"], pair["b"]) for name, pair in adapters.items()}
