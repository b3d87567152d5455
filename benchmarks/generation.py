"""Beam search against `transformers.generate` (torch, with KV cache): `python -m benchmarks.generation`.

    python -m benchmarks.generation [--size=small|full] [--length=1024] [--answer=70] [--beams=5]

Both search for answers of exactly `answer` tokens to one encoded prompt, so that both take the same number of steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.models import make_jax_model, make_torch_model, minimal_config, random_weights
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, compile_program, parse_args, report
from benchmarks.t5 import T5_CONFIGS
from calce_jax.models.beam_search import beam_search


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__,
        size={"choices": tuple(T5_CONFIGS)},
        length={"type": int, "default": 1024},
        answer={"type": int, "default": 70},
        beams={"type": int, "default": 5},
    )
    size = args.size or ("small" if settings.device == "cpu" else "full")
    report(settings, "generation", [compare_generation(settings, size, args.length, args.answer, args.beams)])


def compare_generation(
    settings: BenchmarkSettings, size: str, length: int, answer_length: int, beams: int
) -> ComparisonRow:
    """Compare the search only; the prompt is already encoded."""
    import torch  # noqa: PLC0415
    from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415

    model_config = minimal_config(t5=T5_CONFIGS[size]())
    weights = random_weights(model_config)
    encoded = np.random.default_rng(0).standard_normal((1, length, model_config.t5.width), np.float32)
    graph, params = nnx.split(make_jax_model(weights, settings).t5)
    memory, mask = jnp.asarray(encoded, settings.dtype), jnp.ones((1, length), bool)

    def search(params: nnx.State, memory: jax.Array, mask: jax.Array) -> jax.Array:
        t5 = nnx.merge(graph, params)
        return beam_search(t5, memory, mask, num_beams=beams, max_length=answer_length, min_length=answer_length).tokens

    program, seconds = compile_program(search, params, memory, mask)
    writer = make_torch_model(weights, settings).language_model
    states = torch.from_numpy(encoded).to(settings.torch_device, writer.dtype)
    attention_mask = torch.ones((1, length), device=settings.torch_device).long()

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return writer.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=attention_mask,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            min_new_tokens=answer_length,
            max_new_tokens=answer_length,
        )

    return compare(
        settings,
        f"search of {beams} beams, T5 size {size}, {length} tokens, answers of {answer_length}, {settings.dtype}",
        lambda: program(params, memory, mask),
        theirs,
        other="transformers.generate",
        agreement=count_equal_answers,
        compile_s=seconds,
        program=program,
    )


def count_equal_answers(ours: Any, theirs: Any) -> str:
    """Return the number of equal answers and the length of the longest of each side, in words."""
    ours, theirs = np.asarray(ours)[0], theirs.cpu().numpy()[:, 1:]
    our_length = int((ours != 0).sum(axis=1).max())
    theirs = np.pad(theirs, ((0, 0), (0, ours.shape[1] - theirs.shape[1])))
    num_equal, their_length = int((ours == theirs).all(axis=1).sum()), int((theirs != 0).sum(axis=1).max())
    return f"{num_equal} of {len(ours)} answers the same; the longest has {their_length} tokens, of ours {our_length}"


if __name__ == "__main__":
    main()
