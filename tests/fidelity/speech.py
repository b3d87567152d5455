"""15: Whisper with its real weights: what the encoder hears, the first logits, and the words it writes."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.models.whisper import Whisper
from calce_jax.speech.decode import Windows, transcribe_windows
from calce_jax.speech.whisper_model import SpeechModel, open_whisper
from tests.fidelity.folder import Arrays, Folder
from tests.fidelity.report import Group

# float32 sums over 3,000 frames in another order; of two implementations in PyTorch the difference is as large.
HEARD, LOGITS = 2e-5, 1e-4


def whisper(folder: Folder) -> Iterator[Group]:
    """Compare every recorded Whisper; `15_whisper_tiny_en.npz` is of the model in `weights/whisper-tiny.en`."""
    for file in folder.files("15_whisper_*.npz"):
        size = file.removeprefix("15_whisper_").replace("_en", ".en").replace("_", "-")
        model = open_whisper(folder.beside("weights", f"whisper-{size}"))
        yield from _compare(file, folder.arrays(file), model)


def _compare(file: str, arrays: Arrays, model: SpeechModel) -> Iterator[Group]:
    heard, logits = Group(f"{file}/encoder", HEARD), Group(f"{file}/logits", LOGITS)
    words = Group(f"{file}/words")
    yield from (heard, logits, words)
    mel = jnp.asarray(arrays["mel"].T[None])
    memory = nnx.jit(Whisper.encode)(model.whisper, mel)
    with heard.case("encoder") as case:
        case.close(memory[0], arrays["encoder"])
    prompt, ids = arrays["prompt"].tolist(), arrays["ids"].tolist()
    steps = len(arrays["logits"])
    with logits.case("first steps") as case:
        ours = _logits(model.whisper, memory, ids[: len(prompt) + steps - 1])[-steps:]
        known = np.isfinite(arrays["logits"])
        case.close(np.where(known, ours, 0.0), np.where(known, arrays["logits"], 0.0))
    with words.case("greedy") as case:
        asked = Windows(
            mel=mel,
            prompt=jnp.asarray([prompt], jnp.int32),
            prompt_length=jnp.asarray([len(prompt)], jnp.int32),
            temperature=jnp.zeros(1, jnp.float32),
            seed=jnp.zeros(1, jnp.uint32),
        )
        wanted = ids[len(prompt) :]

        @nnx.jit
        def write(whisper: Whisper, asked: Windows) -> jax.Array:
            return transcribe_windows(whisper, asked, model.vocabulary, longest=len(wanted), times=False).tokens

        case.same(write(model.whisper, asked)[0], wanted)


def _logits(model: Whisper, memory: jax.Array, ids: list[int]) -> np.ndarray:
    """Return the logits after each token."""

    @nnx.jit
    def run(model: Whisper, memory: jax.Array, ids: jax.Array) -> jax.Array:
        blocks = model.decoder_blocks()
        cache = model.start(blocks, memory, ids.shape[1])
        at, first = jnp.zeros((), jnp.int32), jnp.zeros(1, jnp.int32)
        return model.logits(model.advance(blocks, ids, cache, at, first)[0])

    return np.asarray(run(model, memory, jnp.asarray([ids], jnp.int32)))[0]
