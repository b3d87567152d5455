"""A tokenizer of text, without transformers, which takes longer to import than the rest of a search takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# Before these words and signs a decoded text has no space, as transformers' `clean_up_tokenization_spaces`.
CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclass(frozen=True, eq=False)
class TextTokenizer:
    """A tokenizer of T5 or BERT, with the calls and the names of transformers' ones.

    Fields:
      backend: from text to ids, without padding and truncation.
      unk_token_id, pad_token_id: ids of the unknown token and of padding.
      cleans_up: `decode` leaves out the spaces before punctuation.
    """

    backend: Tokenizer
    unk_token_id: int
    pad_token_id: int
    cleans_up: bool = False

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def __call__(self, text: str | Sequence[str], *, add_special_tokens: bool = True) -> dict[str, Any]:
        """Return the ids of a text, or of each of several, as "input_ids"."""
        if isinstance(text, str):
            return {"input_ids": self.encode(text, add_special_tokens=add_special_tokens)}
        encoded = self.backend.encode_batch_fast(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in encoded]}

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        text = self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        for spaced in CLEANED if self.cleans_up else ():
            text = text.replace(spaced, spaced.strip())
        return text

    def token_id(self, token: str) -> int:
        """Return the id of a token; that of the unknown token if there is no such token."""
        found = self.backend.token_to_id(token)
        return self.unk_token_id if found is None else found

    def token(self, token_id: int) -> str:
        """Return a token by its id.

        Raises:
          ValueError: there is no such id.
        """
        found = self.backend.id_to_token(token_id)
        if found is None:
            raise ValueError(f"there is no token {token_id} among {len(self)}")
        return found

    def get_vocab(self) -> dict[str, int]:
        """Return the id of every token."""
        return self.backend.get_vocab()
