"""Beam search beside `transformers.generate` (torch, with its cache): `python -m benchmarks.generation`.

    python -m benchmarks.generation [--size=small|full] [--length=1024] [--answer=70] [--beams=5]

Both search answers of exactly `answer` tokens to one encoded prompt, so both take as many steps.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.models import in_jax, in_torch, random_weights, sizes_of
from benchmarks.paired import Row, Setting, arguments, compare, compiled, report
from benchmarks.t5 import T5S
from calce_jax.models.beam_search import beam_search


def main() -> None:
    """Measure and write it down."""
    setting, given = arguments(
        __doc__,
        size={"choices": tuple(T5S)},
        length={"type": int, "default": 1024},
        answer={"type": int, "default": 70},
        beams={"type": int, "default": 5},
    )
    size = given.size or ("small" if setting.device == "cpu" else "full")
    report(setting, "generation", [generation(setting, size, given.length, given.answer, given.beams)])


def generation(setting: Setting, size: str, length: int, answer: int, beams: int) -> Row:
    """Compare the search alone: the prompt is encoded beforehand."""
    import torch  # noqa: PLC0415
    from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415

    sizes = sizes_of(t5=T5S[size]())
    weights = random_weights(sizes)
    encoded = np.random.default_rng(0).standard_normal((1, length, sizes.t5.width), np.float32)
    graph, params = nnx.split(in_jax(weights, setting).t5)
    memory, mask = jnp.asarray(encoded, setting.dtype), jnp.ones((1, length), bool)

    def search(params: nnx.State, memory: jax.Array, mask: jax.Array) -> jax.Array:
        t5 = nnx.merge(graph, params)
        return beam_search(t5, memory, mask, beams=beams, length=answer, shortest=answer).tokens

    program, seconds = compiled(search, params, memory, mask)
    writer = in_torch(weights, setting).language_model
    states = torch.from_numpy(encoded).to(setting.torch_device, writer.dtype)
    seen = torch.ones((1, length), device=setting.torch_device).long()

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return writer.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=seen,
            num_beams=beams,
            num_return_sequences=beams,
            do_sample=False,
            min_new_tokens=answer,
            max_new_tokens=answer,
        )

    return compare(
        setting,
        f"search of {beams} beams, T5 size {size}, {length} tokens, answers of {answer}, {setting.dtype}",
        lambda: program(params, memory, mask),
        theirs,
        other="transformers.generate",
        agreement=same_answers,
        compile_s=seconds,
        program=program,
    )


def same_answers(ours: Any, theirs: Any) -> str:
    """Say how many of the answers are the same, token by token, and how many tokens the longest has on each side."""
    ours, theirs = np.asarray(ours)[0], theirs.cpu().numpy()[:, 1:]
    written = int((ours != 0).sum(axis=1).max())
    theirs = np.pad(theirs, ((0, 0), (0, ours.shape[1] - theirs.shape[1])))
    same, longest = int((ours == theirs).all(axis=1).sum()), int((theirs != 0).sum(axis=1).max())
    return f"{same} of {len(ours)} answers the same; the longest has {longest} tokens, of ours {written}"


if __name__ == "__main__":
    main()
