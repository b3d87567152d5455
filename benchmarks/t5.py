"""T5 against `transformers` (torch): its encoder, and a training step of its adapters against `peft`.

    python -m benchmarks.t5 [--size=small|full] [--length=1024] [--answer=40] [--attention=xla]

A step is the loss of an answer with dropout, the gradients of all adapters, and AdamW.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.models import make_jax_model, make_torch_model, minimal_config, random_weights
from benchmarks.paired import (
    BenchmarkFn,
    BenchmarkSettings,
    ComparisonRow,
    check_close,
    compare,
    compile_program,
    parse_args,
    report,
)
from benchmarks.towers import compare_tower
from calce_jax.checkpoints.convert.huggingface import write_adapter
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.config import AttentionImplementation
from calce_jax.models.calce import answer_loss, shift_right
from calce_jax.models.calce_sizes import CalceConfig, T5Config
from calce_jax.models.lora import LoraConfig
from calce_jax.models.t5 import T5

T5_CONFIGS = {"small": T5Config.flan_small, "full": T5Config.flan_xl}
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY = 1e-4, (0.9, 0.999), 1e-8, 0.05


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__,
        size={"choices": tuple(T5_CONFIGS)},
        length={"type": int, "default": 1024},
        answer={"type": int, "default": 40},
        attention={"choices": ("xla", "dpa", "flash"), "default": "xla"},
    )
    size = args.size or ("small" if settings.device == "cpu" else "full")
    rows = [
        compare_encoder(settings, size, args.length, args.attention),
        compare_train_step(settings, size, args.length, args.answer, args.attention),
    ]
    report(settings, "t5", rows)


def compare_encoder(
    settings: BenchmarkSettings, size: str, length: int, attention: AttentionImplementation
) -> ComparisonRow:
    """Compare the encoder on one prompt of `length` tokens."""
    model_config = minimal_config(t5=T5_CONFIGS[size]()).with_attention(attention)
    weights = random_weights(model_config)
    name = f"T5 encoder, size {size}, {length} tokens, attention {attention}"
    t5, encoder = make_jax_model(weights, settings).t5, make_torch_model(weights, settings).language_model.encoder
    return compare_t5_encoder(settings, name, t5, encoder, length=length)


def compare_t5_encoder(
    settings: BenchmarkSettings, name: str, t5: T5, encoder: Any, *, length: int, counted: T5 | None = None
) -> ComparisonRow:
    """Compare two encoders with the same weights on one random prompt; see `compare_tower`."""
    import torch  # noqa: PLC0415

    prompt = np.random.default_rng(0).standard_normal((1, length, t5.config.width), np.float32)
    embeddings = torch.from_numpy(prompt).to(settings.torch_device, getattr(torch, settings.dtype))
    mask = torch.ones(prompt.shape[:2], device=settings.torch_device).long()

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return encoder(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state

    def encode(t5: T5, x: jax.Array) -> jax.Array:
        return t5.encode(x, jnp.ones(x.shape[:2], bool))

    inputs = jnp.asarray(prompt, settings.dtype)
    return compare_tower(settings, name, t5, encode, inputs=inputs, theirs=theirs, their_tower=encoder, counted=counted)


def compare_train_step(
    settings: BenchmarkSettings, size: str, length: int, answer: int, attention: AttentionImplementation
) -> ComparisonRow:
    """Compare training steps; their dropout masks differ."""
    model_config = minimal_config(t5=T5_CONFIGS[size](), lora=LoraConfig()).with_attention(attention)
    weights = random_weights(model_config)
    prompt = _prompt(model_config, length)
    labels = np.random.default_rng(1).integers(2, model_config.t5.vocab, (1, answer)).astype(np.int32)
    ours = our_step(weights, settings, prompt, labels)
    theirs = _their_step(weights, settings, prompt, labels)

    def agreement(loss: Any, other: Any) -> str:
        # The dropout masks differ, so the losses do.
        return check_close(loss, other, max_difference=0.1)

    return compare(
        settings,
        f"T5 train step with LoRA, size {size}, {length} tokens, answer of {answer}, {settings.dtype}",
        ours.run,
        theirs,
        other="transformers + peft",
        agreement=agreement,
        compile_s=ours.compile_s,
        program=ours.program,
        tflop=ours.tflop,
    )


class Step(NamedTuple):
    """A training step: `run` does one and returns its loss."""

    run: BenchmarkFn
    program: Any
    compile_s: float
    tflop: float


def our_step(weights: Weights, settings: BenchmarkSettings, prompt: np.ndarray, labels: np.ndarray) -> Step:
    """Return our training step; every run continues from the one before."""

    def adapter(path: tuple[Any, ...], _: object) -> bool:
        return path[-1] in ("a", "b")

    graph, adapters, frozen = nnx.split(make_jax_model(weights, settings).t5, adapter, ...)
    optimizer = optax.adamw(LEARNING_RATE, *BETAS, EPS, weight_decay=WEIGHT_DECAY)
    x, answer = jnp.asarray(prompt, settings.dtype), jnp.asarray(labels)
    mask = jnp.ones(prompt.shape[:2], bool)

    def step(adapters: nnx.State, moments: Any, frozen: nnx.State, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(adapters: nnx.State) -> jax.Array:
            t5 = nnx.merge(graph, adapters, frozen)
            encode_key, decode_key = jax.random.split(key)
            memory = t5.encode(x, mask, key=encode_key)
            return answer_loss(t5.decode(shift_right(answer), memory, mask, key=decode_key), answer).mean()

        value, gradients = jax.value_and_grad(loss)(adapters)
        updates, moments = optimizer.update(gradients, moments, adapters)
        return optax.apply_updates(adapters, updates), moments, value

    state, key = [adapters, optimizer.init(adapters)], jax.random.key(0)
    program, seconds = compile_program(step, *state, frozen, key, donate_argnums=(0, 1))
    flops = count_flops(jax.make_jaxpr(step)(*state, frozen, key))
    step_numbers = iter(range(10**6))

    def run() -> jax.Array:
        *state[:], loss = program(*state, frozen, jax.random.fold_in(key, next(step_numbers)))
        jax.block_until_ready(state)
        return loss

    return Step(run, program, seconds, flops / 1e12)


def _their_step(weights: Weights, settings: BenchmarkSettings, prompt: np.ndarray, labels: np.ndarray) -> Any:
    import peft  # noqa: PLC0415
    import torch  # noqa: PLC0415

    base_model = make_torch_model(replace(weights, trained={}), settings).language_model
    with tempfile.TemporaryDirectory() as folder:
        write_adapter(Path(folder) / "adapter", weights, "small")
        model = peft.PeftModel.from_pretrained(base_model, Path(folder) / "adapter", is_trainable=True)
    model = model.to(settings.torch_device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY)
    inputs = torch.from_numpy(prompt).to(settings.torch_device, base_model.dtype)
    mask = torch.ones(prompt.shape[:2], device=settings.torch_device).long()
    answer = torch.from_numpy(labels).long().to(settings.torch_device)

    def run() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model(inputs_embeds=inputs, attention_mask=mask, labels=answer).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def _prompt(model_config: CalceConfig, length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, length, model_config.t5.width), np.float32)


if __name__ == "__main__":
    main()
