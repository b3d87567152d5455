"""A Whisper, opened: weights, vocabulary and tokenizer from a folder or the Hugging Face hub."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.state_dict import ConversionError, to_flax
from calce_jax.checkpoints.convert.whisper import TABLE
from calce_jax.errors import UserError
from calce_jax.models.whisper import SIZES, Whisper, WhisperConfig
from calce_jax.speech.special_tokens import Vocabulary

CONFIG, GENERATION, WEIGHTS = "config.json", "generation_config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
WANTED = [CONFIG, GENERATION, WEIGHTS, INDEX, "model-*.safetensors", "*token*.json", "vocab.json", "merges.txt"]


T = TypeVar("T")
Dtype = Literal["float32", "bfloat16"]


class SpeechModelError(UserError):
    """A Whisper cannot be opened; the message names it, what is wrong and the remedy."""


@dataclass(frozen=True)
class SpeechModel:
    """What it takes to transcribe.

    Attributes:
      whisper: the model, with its weights on the default device.
      vocabulary: the tokens that are no text.
      tokenizer: the tokens that are.
      dtype: of its weights, and of what is computed from them.
      source: where it came from, for messages.
    """

    whisper: Whisper
    vocabulary: Vocabulary
    tokenizer: PreTrainedTokenizerBase
    dtype: Dtype
    source: str

    def text(self, tokens: list[int]) -> str:
        """Return what tokens say, without those that are no text."""
        said = [token for token in tokens if token < self.vocabulary.end]
        return str(self.tokenizer.decode(said, clean_up_tokenization_spaces=False))


def open_whisper(source: str | Path, dtype: Dtype = "float32") -> SpeechModel:
    """Open a Whisper in the layout of Hugging Face; only safetensors are read.

    Args:
      source: a folder, the name of a model on the hub ("openai/whisper-small"), or a size ("small", "tiny.en",
        "turbo"), which stands for OpenAI's model of that name.
      dtype: of the weights; bfloat16 is faster on accelerators, and now and then chooses another word.

    Raises:
      SpeechModelError: there is no such folder, model or size; a file is missing or damaged; weights do not fit.
    """
    folder = _folder(source)
    config = _read(folder / CONFIG, WhisperConfig.from_hugging_face)
    vocabulary = _read(folder / GENERATION, Vocabulary.from_hugging_face)
    whisper = nnx.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))
    weights = folder / INDEX if (folder / INDEX).is_file() else folder / WEIGHTS
    try:
        arrays = to_flax(TABLE, open_tensors(weights), nnx.state(whisper))
    except WeightsFileError as error:
        raise SpeechModelError(f"{error} (a Whisper is read from safetensors alone)") from error
    except ConversionError as error:
        raise SpeechModelError(f"{weights}: {error}\nfetch the whole model again") from error
    nnx.update(whisper, jax.tree.map(lambda weight: jnp.asarray(weight, dtype), arrays))
    return SpeechModel(whisper, vocabulary, _tokenizer(folder, vocabulary, config), dtype, str(source))


def _folder(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    name, stem = str(source), str(source).removesuffix(".en")
    if "/" not in name:
        if stem not in SIZES or (name != stem and stem not in ("tiny", "base", "small", "medium")):
            sizes = ", ".join(SIZES)
            raise SpeechModelError(
                f"{name}: no such folder, and no size of Whisper",
                "give a folder, a name on the Hugging Face hub, or "
                f"one of {sizes} (and .en for English alone, up to medium)",
            )
        name = f"openai/whisper-{'large-v3-turbo' if stem == 'turbo' else name}"
    try:
        return Path(snapshot_download(name, allow_patterns=WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SpeechModelError(
            f"{source}: neither a folder nor a model that could be fetched from the Hugging Face hub "
            f"({type(error).__name__})",
            "correct the name, or give the folder of a fetched model",
        ) from error


def _read(path: Path, understand: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return understand(json.loads(path.read_text()))
    except FileNotFoundError:
        raise SpeechModelError(
            f"{path}: no such file", "fetch the whole model, in the layout of Hugging Face"
        ) from None
    except json.JSONDecodeError as error:
        raise SpeechModelError(f"{path}: damaged ({error})", "fetch the model again") from error
    except ValueError as error:
        raise SpeechModelError(f"{path}: {error}") from error


def _tokenizer(folder: Path, vocabulary: Vocabulary, config: WhisperConfig) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise SpeechModelError(
            f"{folder}: no usable tokenizer ({error})", "fetch tokenizer.json and tokenizer_config.json"
        ) from error
    if tokenizer.convert_tokens_to_ids("<|startoftranscript|>") != vocabulary.start or vocabulary.time >= config.vocab:
        raise SpeechModelError(
            f"{folder}: {CONFIG}, {GENERATION} and the tokenizer are not of the same model", "fetch them from one place"
        )
    return tokenizer
