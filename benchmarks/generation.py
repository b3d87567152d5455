"""Beam search against `transformers.generate` (torch, with KV cache): `python -m benchmarks.generation`.

    python -m benchmarks.generation [--size=small|full] [--length=1024] [--answer=70] [--beams=5]

Both search for answers of exactly `answer` tokens to one encoded prompt, so that both take the same number of steps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.models import make_jax_model, make_torch_model, minimal_config, random_weights
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, compile_counted, parse_args, report
from benchmarks.t5 import T5_CONFIGS
from benchmarks.towers import held_bytes
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.beam_search import beam_search
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.t5 import EOS_ID, T5


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
    weights = random_weights(minimal_config(t5=T5_CONFIGS[size]()))
    name = f"search of {beams} beams, T5 size {size}, {length} tokens, answers of {answer_length}"
    t5, writer = make_jax_model(weights, settings).t5, make_torch_model(weights, settings).language_model
    return compare_search(settings, name, t5, writer, length=length, answer_length=answer_length, beams=beams)


def compare_search(
    settings: BenchmarkSettings, name: str, t5: T5, writer: Any, *, length: int, answer_length: int, beams: int
) -> ComparisonRow:
    """Compare the search of two models with the same weights, for one random encoded prompt.

    The bandwidth counts the weights of decoder and head, see `decoder_bytes`; keys and values come on top. Memory is
    that of a T5 without its encoder, which our program does not get.
    """
    import torch  # noqa: PLC0415
    from transformers.modeling_outputs import BaseModelOutput  # noqa: PLC0415

    encoded = np.random.default_rng(0).standard_normal((1, length, t5.config.width), np.float32)
    graph, params = nnx.split(t5)
    memory, mask = jnp.asarray(encoded, settings.dtype), jnp.ones((1, length), bool)

    def search(params: nnx.State, memory: jax.Array, mask: jax.Array) -> BeamSearchOutput:
        t5 = nnx.merge(graph, params)
        return beam_search(t5, memory, mask, num_beams=beams, max_length=answer_length, min_length=answer_length)

    program = compile_counted(
        search, params, memory, mask, while_trip_count=answer_length, options=settings.compiler_options
    )
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

    def agreement(ours: BeamSearchOutput, theirs: Any) -> str:
        encoder_outputs = BaseModelOutput(last_hidden_state=states)
        inputs = {"encoder_outputs": encoder_outputs, "attention_mask": attention_mask}
        return f"{count_equal_answers(ours.tokens, theirs)}; {check_scores(settings, ours, writer, inputs)}"

    return compare(
        settings,
        f"{name}, {settings.dtype}",
        lambda: program.run(params, memory, mask),
        theirs,
        other="transformers.generate",
        agreement=agreement,
        compile_s=program.compile_s,
        program=program.run,
        tflop=program.tflop,
        gigabytes=decoder_bytes([t5.decoder, t5.lm_head], answer_length) / 1e9,
        their_bytes=held_bytes(writer) - held_bytes(writer.encoder) + held_bytes(writer.shared),
    )


def decoder_bytes(parts: Sequence[nnx.Module], num_tokens: int) -> int:
    """Return the bytes of weights that are read to decode some tokens.

    Each token reads all of them, except those for the keys and values of cross-attention, which are computed once.
    """
    each_token, once = 0, 0
    for part in parts:
        for name, leaf in named_leaves(nnx.state(part)).items():
            if "cross_attention/k/" in name or "cross_attention/v/" in name:
                once += leaf.nbytes
            else:
                each_token += leaf.nbytes
    return num_tokens * each_token + once


def count_equal_answers(ours: Any, theirs: Any) -> str:
    """Return the number of equal answers and the length of the longest of each side, in words.

    Args:
      ours: tokens (B, K, M), 0 after the end.
      theirs: tokens (B K, up to M + 1) of torch, the start token first.
    """
    ours, theirs = np.asarray(ours).reshape(-1, ours.shape[-1]), theirs.cpu().numpy()[:, 1:]
    our_length = int((ours != 0).sum(axis=1).max())
    theirs = np.pad(theirs, ((0, 0), (0, ours.shape[1] - theirs.shape[1])))
    num_equal, their_length = int((ours == theirs).all(axis=1).sum()), int((theirs != 0).sum(axis=1).max())
    return f"{num_equal} of {len(ours)} answers the same; the longest has {their_length} tokens, of ours {our_length}"


def check_scores(settings: BenchmarkSettings, ours: BeamSearchOutput, writer: Any, inputs: Mapping[str, Any]) -> str:
    """Compare the log-probability of our best answers with that which torch gives them, and return both in words.

    Unlike the answers, of which rounding may choose others, it must agree in any dtype.

    Args:
      settings: dtype.
      ours: answers of every row.
      writer: torch's T5.
      inputs: its encoder's, or what its encoder returned.

    Raises:
      ValueError: they differ by more than 0.1 % in float32, or 5 % in bfloat16: the computations are not the same.
    """
    import torch  # noqa: PLC0415

    tokens = torch.from_numpy(np.array(ours.tokens[:, 0])).long().to(settings.torch_device)
    with torch.no_grad():
        logits = writer(**inputs, labels=tokens).logits.float()
    token_scores = logits.log_softmax(dim=-1).gather(-1, tokens[:, :, None])[:, :, 0]
    # Up to the end token, not to the first 0: random weights also write the padding token.
    is_end = tokens == EOS_ID
    is_answer = is_end.cumsum(dim=1) - is_end.long() == 0
    their_scores = np.asarray((token_scores * is_answer).sum(dim=1).cpu())
    our_scores = np.asarray(ours.log_probability[:, 0])
    distance = float(np.abs(our_scores / their_scores - 1).max())
    if not distance <= (1e-3 if settings.dtype == "float32" else 0.05):
        raise ValueError(f"log-probabilities are {our_scores} and {their_scores}: not the same computation")
    return f"log-probabilities of the best differ by {distance:.0e}"


if __name__ == "__main__":
    main()
