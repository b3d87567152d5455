"""Loading the tokenizers of T5 and BERT, and the small packaged ones.

transformers silently builds a tokenizer of unknown tokens from a folder without a vocabulary. So the files are checked
first, and a loaded tokenizer is tried.
"""

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from calce_jax.config import RunConfig, packaged_path
from calce_jax.errors import UserError
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.storage.provenance import file_hash
from calce_jax.text.text_tokenizer import TextTokenizer

T5_FILES = ("tokenizer.json", "spiece.model")
BERT_FILES = ("tokenizer.json", "vocab.txt")
# What transformers reads of a folder, beside a vocabulary.
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
NUM_T5_SENTINELS = 100
# transformers imports its parts when they are asked for, and fails where two threads ask for the first.
_IMPORT = threading.Lock()


class TokenizerError(UserError):
    """A folder without a usable tokenizer; the message names it and the remedy."""


def load_t5(source: str | Path, programs: ProgramCache | None = None) -> TextTokenizer:
    """Load a T5 tokenizer: id 0 is padding, 1 end, 2 unknown, 3 the lone word boundary; "<extra_id_0>" is the last id.

    Args:
      source: a folder that holds `spiece.model` or `tokenizer.json`, or the name of a model on the Hugging Face hub.
      programs: has the tokenizer, if it was made from the same files before; transformers is not imported then.

    Raises:
      TokenizerError: the folder has neither file, or its vocabulary is not T5's.
    """
    _check_vocabulary_files(source, T5_FILES)
    # As in the original: decodes "[[12, 30]]" also where the model wrote a word boundary before the comma.
    tokenizer = _load("t5", source, programs, cleans_up=True)
    sentinels = [tokenizer.token_id(token) for token in ("<extra_id_0>", f"<extra_id_{NUM_T5_SENTINELS - 1}>")]
    expected = [len(tokenizer) - 1, len(tokenizer) - NUM_T5_SENTINELS]
    first = [tokenizer.token_id(token) for token in ("<pad>", "</s>", "<unk>", "▁")]
    if first != [0, 1, 2, 3] or sentinels != expected:
        raise TokenizerError(
            f"{source}: the special tokens do not have the ids of T5's", "give the folder or name of a T5 tokenizer"
        )
    return _check_tokenizer(tokenizer, source)


def load_bert(source: str | Path, programs: ProgramCache | None = None) -> TextTokenizer:
    """Load an uncased BERT tokenizer.

    Args:
      source: a folder that holds `vocab.txt` or `tokenizer.json`, or the name of a model on the Hugging Face hub.
      programs: has the tokenizer, if it was made from the same files before; transformers is not imported then.

    Raises:
      TokenizerError: the folder has neither file, or its vocabulary is not BERT's.
    """
    _check_vocabulary_files(source, BERT_FILES)
    tokenizer = _load("bert", source, programs)
    if tokenizer.pad_token_id != 0:
        raise TokenizerError(f"{source}: [PAD] is not id 0", "give the folder or name of an uncased BERT tokenizer")
    return _check_tokenizer(tokenizer, source)


def _load(
    kind: Literal["t5", "bert"], source: str | Path, programs: ProgramCache | None, *, cleans_up: bool = False
) -> TextTokenizer:
    def convert() -> tuple[str, int, int]:
        """Return the tokenizer that transformers makes of the files, as JSON, and two of its ids."""
        # Takes longer to import than the rest of a search takes.
        with _IMPORT:
            from transformers import BertTokenizer, T5Tokenizer  # noqa: PLC0415

        loaded: Any = {"t5": T5Tokenizer, "bert": BertTokenizer}[kind].from_pretrained(str(source))
        loaded.backend_tokenizer.no_padding()
        loaded.backend_tokenizer.no_truncation()
        return loaded.backend_tokenizer.to_str(), loaded.unk_token_id, loaded.pad_token_id

    vocabulary = vocabulary_hash(source, SETTINGS_FILES)
    with _load_errors(source):
        settings = (kind, vocabulary, version("transformers"))
        kept = programs.recall("tokenizer", settings, convert) if programs and vocabulary else convert()
        content, unknown, padding = kept
        return TextTokenizer(Tokenizer.from_str(content), unknown, padding, cleans_up)


@contextmanager
def _load_errors(source: str | Path) -> Iterator[None]:
    """Turn what transformers and tokenizers raise, of which many types are bare `Exception`, into a TokenizerError."""
    try:
        yield
    except Exception as error:
        raise TokenizerError(
            f"{source}: the tokenizer cannot be loaded ({' '.join(str(error).split()):.200})",
            "copy its files there again, or check the name",
        ) from error


def vocabulary_hash(source: str | Path, others: Sequence[str] = ()) -> str | None:
    """Return the SHA-256 of the vocabulary files of a tokenizer's folder, and of others; None for a name on the hub."""
    names = dict.fromkeys((*T5_FILES, *BERT_FILES, *others))
    files = [file for name in names if (file := Path(source) / name).is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_hash(file)}\n".encode())
    return digest.hexdigest() if files else None


def _check_vocabulary_files(source: str | Path, files: tuple[str, ...]) -> None:
    """Raise if a folder has no vocabulary; a name like "owner/model" that is no folder is a name on the hub."""
    folder = Path(source)
    is_hub_name = not folder.exists() and not folder.is_absolute() and str(source).count("/") <= 1
    if not is_hub_name and not any((folder / file).is_file() for file in files):
        raise TokenizerError(
            f"{source}: no {' and no '.join(files)} in this folder",
            "copy the tokenizer's files there (`calce fetch --what=blip2` and `--what=bert` fetch them), or give the "
            "name of a model on the Hugging Face hub",
        )


def _check_tokenizer(tokenizer: TextTokenizer, source: str | Path) -> TextTokenizer:
    ids = tokenizer.encode("a moment in a video", add_special_tokens=False)
    if all(piece == tokenizer.unk_token_id for piece in ids):
        raise TokenizerError(f"{source}: every word is an unknown token", "copy its vocabulary file again")
    return tokenizer


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of T5 and BERT."""

    t5: TextTokenizer
    bert: TextTokenizer


def tokenizer_hashes(config: RunConfig) -> dict[str, str | None]:
    """Return the `vocabulary_hash` of both tokenizers by the field of the config that names them."""
    fields = {"text.t5_tokenizer": config.text.t5_tokenizer, "text.bert_tokenizer": config.text.bert_tokenizer}
    return {field: vocabulary_hash(packaged_path(path)) for field, path in fields.items()}


def open_tokenizers(config: RunConfig, programs: ProgramCache | None = None) -> Tokenizers:
    """Load the tokenizers that a config names, see `load_t5`."""
    return Tokenizers(
        load_t5(packaged_path(config.text.t5_tokenizer), programs),
        load_bert(packaged_path(config.text.bert_tokenizer), programs),
    )
