"""Loading T5's and BERT's tokenizers, and the small ones that stand in for them, all by the same code.

transformers makes a tokenizer that knows only "unknown" when it is handed a vocabulary in the wrong way or a folder
without one, and says nothing. So the files are looked for first, and what was loaded is tried.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer
from transformers import BertTokenizer, PreTrainedTokenizerBase, T5Tokenizer

from calce_jax.config import RunConfig, packaged_path
from calce_jax.errors import UserError

T5_FILES = ("tokenizer.json", "spiece.model")
BERT_FILES = ("tokenizer.json", "vocab.txt")
NUM_T5_SENTINELS = 100

TokenizerT = TypeVar("TokenizerT", bound=PreTrainedTokenizerBase)


class TokenizerError(UserError):
    """A folder holds no usable tokenizer; the message names it and the remedy."""


def load_t5(source: str | Path) -> T5Tokenizer:
    """Load a T5 tokenizer: ids 0 padding, 1 end, 2 unknown, 3 the lone word border; "<extra_id_0>" has the highest id.

    Args:
      source: a folder that holds `spiece.model` or `tokenizer.json`, or the name of a model on the Hugging Face hub.

    Raises:
      TokenizerError: the folder has neither file, or what it has is not a T5 vocabulary.
    """
    _check_vocabulary_files(source, T5_FILES)
    # As the original decoded: "[[12, 30]]" also where the model wrote a border before the comma.
    tokenizer = T5Tokenizer.from_pretrained(str(source), clean_up_tokenization_spaces=True)
    sentinels = tokenizer.convert_tokens_to_ids(["<extra_id_0>", f"<extra_id_{NUM_T5_SENTINELS - 1}>"])
    expected = [len(tokenizer) - 1, len(tokenizer) - NUM_T5_SENTINELS]
    if tokenizer.convert_tokens_to_ids(["<pad>", "</s>", "<unk>", "▁"]) != [0, 1, 2, 3] or sentinels != expected:
        raise TokenizerError(
            f"{source}: not laid out like T5's vocabulary", "give the folder or name of a T5 tokenizer"
        )
    return _check_tokenizer(tokenizer, source)


def load_bert(source: str | Path) -> BertTokenizer:
    """Load an uncased BERT tokenizer.

    Args:
      source: a folder that holds `vocab.txt` or `tokenizer.json`, or the name of a model on the Hugging Face hub.

    Raises:
      TokenizerError: the folder has neither file, or what it has is not a BERT vocabulary.
    """
    _check_vocabulary_files(source, BERT_FILES)
    tokenizer = BertTokenizer.from_pretrained(str(source))
    if tokenizer.pad_token_id != 0:
        raise TokenizerError(f"{source}: [PAD] is not id 0", "give the folder or name of an uncased BERT tokenizer")
    return _check_tokenizer(tokenizer, source)


def unwrap_fast_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """Return what works inside a tokenizer, which neither pads nor cuts.

    transformers' own call finds the same ids, and takes half as long again to note which letters a token is made of.
    """
    wrapper: Any = tokenizer
    backend = wrapper.backend_tokenizer
    assert isinstance(backend, Tokenizer), "T5's and BERT's are written in Rust"
    backend.no_padding()
    backend.no_truncation()
    return backend


def _check_vocabulary_files(source: str | Path, files: tuple[str, ...]) -> None:
    """Refuse a folder without a vocabulary; a name of the shape "owner/model" that is no folder is left to the hub."""
    folder = Path(source)
    is_hub_name = not folder.exists() and not folder.is_absolute() and str(source).count("/") <= 1
    if not is_hub_name and not any((folder / file).is_file() for file in files):
        raise TokenizerError(
            f"{source}: no {' and no '.join(files)} in this folder",
            "copy the tokenizer's files there, or give the name of a model on the Hugging Face hub",
        )


def _check_tokenizer(tokenizer: TokenizerT, source: str | Path) -> TokenizerT:
    ids = tokenizer.encode("a moment in a video", add_special_tokens=False)
    if all(piece == tokenizer.unk_token_id for piece in ids):
        raise TokenizerError(f"{source}: every word is unknown to this tokenizer", "its vocabulary file is damaged")
    return tokenizer


@dataclass(frozen=True)
class Tokenizers:
    """T5's and BERT's."""

    t5: PreTrainedTokenizerBase
    bert: PreTrainedTokenizerBase


def open_tokenizers(config: RunConfig) -> Tokenizers:
    """Load the tokenizers that a config names."""
    return Tokenizers(
        load_t5(packaged_path(config.text.t5_tokenizer)), load_bert(packaged_path(config.text.bert_tokenizer))
    )
