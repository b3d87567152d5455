"""15: Whisper with its published weights: encoder, first logits, and greedily decoded tokens."""

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.models.whisper import Whisper
from calce_jax.speech.decode import DecodeInputs, transcribe_batch
from calce_jax.speech.whisper_model import SpeechModel, open_whisper
from tests.fidelity.folder import RecordedArrays, RecordingFolder
from tests.fidelity.report import Group

# float32 sums over 3,000 frames in another order; two PyTorch implementations differ as much.
ENCODER_TOLERANCE, LOGITS_TOLERANCE = 2e-5, 1e-4


def whisper(folder: RecordingFolder) -> Iterator[Group]:
    """Compare every recorded Whisper.

    `15_whisper_tiny_en.npz` belongs to `weights/whisper-tiny.en`, unless config.json names other "weights" for it.
    """
    for file in folder.files("15_whisper_*.npz"):
        size = re.sub(r"_en$", ".en", file.removeprefix("15_whisper_")).replace("_", "-")
        weights = folder.optional_settings(file).get("weights", f"whisper-{size}")
        model = open_whisper(folder.find_shared("weights", weights))
        yield from _compare(file, folder.arrays(file), model)


def _compare(file: str, arrays: RecordedArrays, model: SpeechModel) -> Iterator[Group]:
    encoder, logits = Group(f"{file}/encoder", ENCODER_TOLERANCE), Group(f"{file}/logits", LOGITS_TOLERANCE)
    tokens = Group(f"{file}/words")
    yield from (encoder, logits, tokens)
    mel = jnp.asarray(arrays["mel"].T[None])
    memory = nnx.jit(Whisper.encode)(model.whisper, mel)
    with encoder.case("encoder") as case:
        case.close(memory[0], arrays["encoder"])
    prompt, ids = arrays["prompt"].tolist(), arrays["ids"].tolist()
    steps = len(arrays["logits"])
    with logits.case("first steps") as case:
        ours = _logits(model.whisper, memory, ids[: len(prompt) + steps - 1])[-steps:]
        is_finite = np.isfinite(arrays["logits"])
        case.close(np.where(is_finite, ours, 0.0), np.where(is_finite, arrays["logits"], 0.0))
    with tokens.case("greedy") as case:
        inputs = DecodeInputs(
            mel=mel,
            prompt=jnp.asarray([prompt], jnp.int32),
            prompt_length=jnp.asarray([len(prompt)], jnp.int32),
            temperature=jnp.zeros(1, jnp.float32),
            seed=jnp.zeros(1, jnp.uint32),
        )
        expected = ids[len(prompt) :]

        @nnx.jit
        def decode(whisper: Whisper, inputs: DecodeInputs) -> jax.Array:
            return transcribe_batch(
                whisper, inputs, model.special_tokens, max_length=len(expected), timestamps=False
            ).tokens

        case.same(decode(model.whisper, inputs)[0], expected)


def _logits(model: Whisper, memory: jax.Array, ids: list[int]) -> np.ndarray:
    """Return the logits (L, V) after each of the tokens `ids`."""

    @nnx.jit
    def run(model: Whisper, memory: jax.Array, ids: jax.Array) -> jax.Array:
        blocks = model.decoder_blocks()
        cache = model.init_cache(blocks, memory, ids.shape[1])
        position, prompt_start = jnp.zeros((), jnp.int32), jnp.zeros(1, jnp.int32)
        return model.logits(model.decode_step(blocks, ids, cache, position, prompt_start)[0])

    return np.asarray(run(model, memory, jnp.asarray([ids], jnp.int32)))[0]
