"""Whisper against `transformers` (torch) on a batch of windows of 30 s: the encoder, and greedy decoding.

Both decode exactly so many tokens: the end of text is suppressed.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch
import transformers
from flax import nnx
from transformers.generation.utils import GenerationMixin

from benchmarks.generation import decoder_bytes
from benchmarks.gpu.shared_weights import build_torch, draw_tensor, fill_torch, to_jax
from benchmarks.paired import BenchmarkSettings, ComparisonRow, check_close, compare, compile_counted
from benchmarks.towers import held_bytes
from calce_jax.checkpoints.convert.mapping import mapping_rows
from calce_jax.checkpoints.convert.whisper import KEY_MAPPING
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.models.whisper import Whisper, WhisperConfig
from calce_jax.speech.decode import DecodeInputs, DecodeOutputs, transcribe_batch
from calce_jax.speech.special_tokens import SpecialTokens

# Tokens before a text, and those of half a minute of slow speech.
PROMPT_TOKENS, TEXT_TOKENS = 4, 64
# Tokens of a vocabulary from "no timestamps" to its end, and from the start of a transcript to "no timestamps".
TIMESTAMP_TOKENS, TASK_TOKENS = 1502, 106


def compare_whisper(
    settings: BenchmarkSettings, name: str, config: WhisperConfig, batch_size: int
) -> Iterator[ComparisonRow]:
    """Yield a row for the encoder, and one from mel bands to tokens."""
    whisper, theirs = make_whispers(config, settings)
    bands = np.random.default_rng(0).standard_normal((batch_size, config.mel_frames, config.mel_bins), np.float32)
    yield _compare_encoder(settings, f"encoder of Whisper {name}, {batch_size} windows", whisper, theirs, bands)
    yield _compare_decoding(
        settings, f"Whisper {name}, {batch_size} windows, {TEXT_TOKENS} tokens each", whisper, theirs, bands
    )


def make_whispers(config: WhisperConfig, settings: BenchmarkSettings) -> tuple[Whisper, Any]:
    """Return both models with the same random weights, made on the device."""
    whisper = nnx.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))
    state = nnx.state(whisper)
    generator = torch.Generator(settings.torch_device).manual_seed(0)
    tensors = {
        name: draw_tensor(leaf.shape, _scale(name, leaf.shape), settings.dtype, settings, generator)
        for name, leaf in named_leaves(state).items()
    }
    nnx.update(whisper, with_leaves(state, {name: to_jax(tensor) for name, tensor in tensors.items()}))
    special = special_tokens(config)
    their_config = transformers.WhisperConfig(
        vocab_size=config.vocab,
        num_mel_bins=config.mel_bins,
        d_model=config.width,
        encoder_layers=config.encoder_depth,
        encoder_attention_heads=config.encoder_heads,
        encoder_ffn_dim=config.encoder_mlp,
        decoder_layers=config.decoder_depth,
        decoder_attention_heads=config.decoder_heads,
        decoder_ffn_dim=config.decoder_mlp,
        max_source_positions=config.audio_positions,
        max_target_positions=config.text_positions,
        decoder_start_token_id=special.sot,
        bos_token_id=special.eot,
        eos_token_id=special.eot,
        pad_token_id=special.eot,
        begin_suppress_tokens=None,
    )
    theirs = build_torch(transformers.WhisperForConditionalGeneration, their_config, settings)
    fill_torch(theirs, mapping_rows(KEY_MAPPING), tensors)
    return whisper, theirs.eval()


def special_tokens(config: WhisperConfig) -> SpecialTokens:
    """Return the special tokens of a vocabulary, in the order of published ones, with the end suppressed."""
    no_timestamps = config.vocab - TIMESTAMP_TOKENS
    sot = no_timestamps - TASK_TOKENS
    return SpecialTokens(
        sot=sot,
        eot=sot - 1,
        no_timestamps=no_timestamps,
        suppress_tokens=(sot - 1,),
        begin_suppress_tokens=(),
        max_initial_timestamp_index=50,
        languages={},
        transcribe=None,
    )


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith("/scale"):
        return 0.0
    return shape[-2] ** -0.5 if name.endswith("kernel") else 0.02


def _compare_encoder(
    settings: BenchmarkSettings, name: str, whisper: Whisper, theirs: Any, bands: np.ndarray
) -> ComparisonRow:
    graph, params = nnx.split(whisper)
    mel, their_mel = _inputs(settings, bands)
    program = compile_counted(lambda params, mel: nnx.merge(graph, params).encode(mel), params, mel)
    encoder = theirs.model.encoder

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return encoder(their_mel).last_hidden_state

    return compare(
        settings,
        f"{name}, {settings.dtype}",
        lambda: program.run(params, mel),
        encode,
        other=f"transformers ({theirs.config._attn_implementation})",
        agreement=lambda a, b: check_close(a, b, max_difference=1e-4 if settings.dtype == "float32" else 0.1),
        compile_s=program.compile_s,
        program=program.run,
        tflop=program.tflop,
        their_bytes=held_bytes(encoder),
    )


def _compare_decoding(
    settings: BenchmarkSettings, name: str, whisper: Whisper, theirs: Any, bands: np.ndarray
) -> ComparisonRow:
    graph, params = nnx.split(whisper)
    mel, their_mel = _inputs(settings, bands)
    rows, special = len(bands), special_tokens(whisper.config)
    prompt = np.tile(np.array([special.sot + n for n in range(PROMPT_TOKENS)], np.int32), (rows, 1))
    inputs = DecodeInputs(
        mel=mel,
        prompt=prompt,
        prompt_length=np.full(rows, PROMPT_TOKENS, np.int32),
        temperature=np.zeros(rows, np.float32),
        seed=np.zeros(rows, np.uint32),
    )

    def transcribe(params: nnx.State, inputs: DecodeInputs) -> DecodeOutputs:
        model = nnx.merge(graph, params)
        return transcribe_batch(model, inputs, special, max_length=TEXT_TOKENS, dtype=settings.dtype, timestamps=False)

    program = compile_counted(transcribe, params, inputs, while_trip_count=TEXT_TOKENS)
    their_prompt = torch.from_numpy(prompt).long().to(settings.torch_device)

    @torch.no_grad()
    def generate() -> torch.Tensor:
        # Of any encoder-decoder: Whisper's own writes a prompt, and splits a recording into windows.
        return GenerationMixin.generate(  # pyright: ignore[reportAttributeAccessIssue]
            theirs,
            input_features=their_mel,
            decoder_input_ids=their_prompt,
            do_sample=False,
            min_new_tokens=TEXT_TOKENS,
            max_new_tokens=TEXT_TOKENS,
        )[:, PROMPT_TOKENS:]

    def agreement(ours: DecodeOutputs, tokens: torch.Tensor) -> str:
        equal = float((np.asarray(ours.tokens) == tokens.cpu().numpy()).mean())
        return f"{equal:.0%} of tokens the same; {_check_scores(settings, ours, theirs, their_mel, their_prompt)}"

    return compare(
        settings,
        f"{name}, {settings.dtype}",
        lambda: program.run(params, inputs),
        generate,
        other="transformers.generate",
        agreement=agreement,
        compile_s=program.compile_s,
        program=program.run,
        tflop=program.tflop,
        gigabytes=decoder_bytes([whisper.decoder], TEXT_TOKENS) / 1e9,
        their_bytes=held_bytes(theirs),
    )


def _check_scores(
    settings: BenchmarkSettings, ours: DecodeOutputs, theirs: Any, mel: torch.Tensor, prompt: torch.Tensor
) -> str:
    """Compare the log-probability of our texts with that which torch gives them; see `generation.check_scores`."""
    tokens = torch.from_numpy(np.array(ours.tokens)).long().to(settings.torch_device)
    with torch.no_grad():
        logits = theirs(mel, decoder_input_ids=torch.cat([prompt, tokens], dim=1)[:, :-1]).logits.float()
    logits[:, :, theirs.config.eos_token_id] = -torch.inf  # suppressed on both sides
    scores = logits[:, prompt.shape[1] - 1 :].log_softmax(dim=-1).gather(-1, tokens[:, :, None])[:, :, 0].sum(dim=1)
    our_scores = np.asarray(ours.avg_logprob) * (np.asarray(ours.length) + 1)
    distance = float(np.abs(our_scores / np.asarray(scores.cpu()) - 1).max())
    if not distance <= (1e-3 if settings.dtype == "float32" else 0.05):
        raise ValueError(f"log-probabilities differ by {distance:.1e}: not the same computation")
    return f"log-probabilities differ by {distance:.0e}"


def _inputs(settings: BenchmarkSettings, bands: np.ndarray) -> tuple[jax.Array, torch.Tensor]:
    """Return mel bands (B, F, C) for ours, and (B, C, F) with the same values for theirs."""
    tensor = torch.from_numpy(bands).to(settings.torch_device, getattr(torch, settings.dtype))
    return to_jax(tensor), tensor.transpose(1, 2).contiguous()
