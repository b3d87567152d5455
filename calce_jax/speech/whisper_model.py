"""Loading a Whisper model: weights, special tokens and tokenizer from a folder or the Hugging Face hub."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
from calce_jax.checkpoints.convert.whisper import KEY_MAPPING
from calce_jax.models.whisper import Whisper, WhisperConfig
from calce_jax.speech.inputs import SpeechModelError, resolve_whisper_name
from calce_jax.speech.special_tokens import SpecialTokens
from calce_jax.storage.text_files import read_text

CONFIG_FILE, GENERATION_CONFIG_FILE, WEIGHTS_FILE = "config.json", "generation_config.json", "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
HF_FILE_PATTERNS = [
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    WEIGHTS_FILE,
    INDEX_FILE,
    "model-*.safetensors",
    "*token*.json",
    "vocab.json",
    "merges.txt",
]


T = TypeVar("T")
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class SpeechModel:
    """A Whisper model with its tokens.

    Attributes:
      whisper: the network, its weights on the default device.
      special_tokens: ids of prompt, language and timestamp tokens.
      tokenizer: decodes text tokens.
      dtype: of the weights and activations.
      source: the folder or name it was loaded from, for messages.
      alignment_heads: (decoder block, head) of those whose attention says when a token is spoken.
    """

    whisper: Whisper
    special_tokens: SpecialTokens
    tokenizer: PreTrainedTokenizerBase
    dtype: Dtype
    source: str
    alignment_heads: tuple[tuple[int, int], ...]

    def decode_text(self, tokens: list[int]) -> str:
        """Decode token ids to text, leaving out special and timestamp tokens."""
        text_tokens = [token for token in tokens if token < self.special_tokens.eot]
        return str(self.tokenizer.decode(text_tokens, clean_up_tokenization_spaces=False))


def open_whisper(source: str | Path, dtype: Dtype = "float32") -> SpeechModel:
    """Load a Whisper model in Hugging Face's layout, from safetensors alone.

    Args:
      source: a folder, a model of the Hugging Face hub ("openai/whisper-small"), or the size of one of OpenAI's models
        ("small", "tiny.en", "turbo").
      dtype: of the weights; bfloat16 is faster on accelerators, and occasionally decodes another word.

    Raises:
      SpeechModelError: there is no such folder, model or size; a file is missing or damaged; weights do not fit.
    """
    folder = _resolve_folder(source)
    config = _read_json(folder / CONFIG_FILE, WhisperConfig.from_hugging_face)
    special_tokens = _read_json(folder / GENERATION_CONFIG_FILE, SpecialTokens.from_hugging_face)
    heads = _read_json(folder / GENERATION_CONFIG_FILE, partial(read_alignment_heads, config))
    whisper = nnx.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))
    weights = folder / INDEX_FILE if (folder / INDEX_FILE).is_file() else folder / WEIGHTS_FILE
    try:
        arrays = to_flax(KEY_MAPPING, open_tensors(weights), nnx.state(whisper))
    except WeightsFileError as error:
        raise SpeechModelError(f"{error.reason} (a Whisper model is read from safetensors)", error.remedy) from error
    except ConversionError as error:
        raise SpeechModelError(f"{weights}: {error}", "fetch the whole model again") from error
    nnx.update(whisper, jax.tree.map(lambda weight: jnp.asarray(weight, dtype), arrays))
    tokenizer = _open_tokenizer(folder, special_tokens, config)
    return SpeechModel(whisper, special_tokens, tokenizer, dtype, str(source), heads)


def read_alignment_heads(config: WhisperConfig, generation_config: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
    """Return the `alignment_heads` of a `generation_config.json`: (decoder block, head).

    Where it has none, as after a fine-tuning, all heads of the upper half of the decoder, as in openai-whisper.

    Raises:
      ValueError: the model has no such block or head.
    """
    heads = generation_config.get("alignment_heads") or [
        (block, head)
        for block in range(config.decoder_depth // 2, config.decoder_depth)
        for head in range(config.decoder_heads)
    ]
    for block, head in heads:
        if not (0 <= block < config.decoder_depth and 0 <= head < config.decoder_heads):
            raise ValueError(
                f"alignment_heads: the model has no block {block} with a head {head}; take this file from the model "
                "from which it was fine-tuned"
            )
    return tuple((int(block), int(head)) for block, head in heads)


def _resolve_folder(source: str | Path) -> Path:
    name = resolve_whisper_name(source)
    if isinstance(name, Path):
        return name
    try:
        return Path(snapshot_download(name, allow_patterns=HF_FILE_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise SpeechModelError(
            f"{source}: neither a folder nor a model that can be downloaded from the Hugging Face hub "
            f"({type(error).__name__})",
            "correct the name, or give the folder of a downloaded model",
        ) from error


def _read_json(path: Path, parse: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        return parse(json.loads(read_text(path, "a Whisper model", "", SpeechModelError)))
    except SpeechModelError:
        raise
    except FileNotFoundError:
        raise SpeechModelError(f"{path}: no such file", "fetch the whole model, in Hugging Face's layout") from None
    except json.JSONDecodeError as error:
        raise SpeechModelError(f"{path}: damaged ({error})", "fetch the model again") from error
    except ValueError as error:
        raise SpeechModelError(f"{path}: {error}") from error
    except (TypeError, LookupError, AttributeError, RecursionError) as error:
        raise SpeechModelError(f"{path}: damaged ({error})", "fetch the model again") from error


def _open_tokenizer(folder: Path, special_tokens: SpecialTokens, config: WhisperConfig) -> PreTrainedTokenizerBase:
    # Older models have the two files of which it is made.
    if not (folder / TOKENIZER_FILE).is_file() and not (folder / "vocab.json").is_file():
        raise SpeechModelError(
            f"{folder / TOKENIZER_FILE}: no such file", "copy that of the model from which this one was fine-tuned"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise SpeechModelError(
            f"{folder}: no usable tokenizer ({error})", "fetch tokenizer.json and tokenizer_config.json"
        ) from error
    if (
        tokenizer.convert_tokens_to_ids("<|startoftranscript|>") != special_tokens.sot
        or special_tokens.timestamp_begin >= config.vocab
    ):
        raise SpeechModelError(
            f"{folder}: {CONFIG_FILE}, {GENERATION_CONFIG_FILE} and the tokenizer belong to different models",
            "fetch all of them from one model",
        )
    return tokenizer
