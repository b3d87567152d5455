"""Special tokens of a Whisper model: prompt, language, timestamp and suppressed tokens.

All are read from the model's `generation_config.json`, so that English-only, multilingual and later models need no
distinction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Seconds per timestamp token.
TIME_STEP_S = 0.02
# Largest first timestamp of a window, in steps of `TIME_STEP_S` (one second), where the model gives none.
MAX_INITIAL_TIMESTAMP_INDEX = 50


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids, named as in OpenAI's Whisper.

    Attributes:
      sot: start of transcript.
      eot: end of text.
      no_timestamps: precedes a text without timestamps.
      suppress_tokens: never generated: symbols that are not spoken, and prompt tokens.
      begin_suppress_tokens: not generated as the first token: a blank, and `eot`.
      max_initial_timestamp_index: largest first timestamp of a window, in steps of `TIME_STEP_S`.
      languages: token by language code, such as "en"; empty for an English-only model.
      transcribe: the task token; None for an English-only model.
    """

    sot: int
    eot: int
    no_timestamps: int
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    max_initial_timestamp_index: int
    languages: Mapping[str, int]
    transcribe: int | None

    @property
    def timestamp_begin(self) -> int:
        """The token of timestamp 0; the tokens of later timestamps follow it."""
        return self.no_timestamps + 1

    @property
    def no_speech(self) -> int:
        """The token for a window without speech; precedes `no_timestamps` in every published vocabulary."""
        return self.no_timestamps - 1

    @property
    def sot_prev(self) -> int:
        """Start of the previous text in a prompt; precedes `no_speech` in every published vocabulary."""
        return self.no_timestamps - 2

    @staticmethod
    def from_hugging_face(config: Mapping[str, Any]) -> "SpecialTokens":
        """Build from the content of a `generation_config.json`.

        Raises:
          ValueError: fields are missing; the message names them.
        """
        required = ["decoder_start_token_id", "eos_token_id", "no_timestamps_token_id"]
        if config.get("is_multilingual", False):
            required += ["lang_to_id", "task_to_id"]
        if missing := [name for name in required if config.get(name) is None]:
            raise ValueError(
                f"{', '.join(missing)}: missing; take this file from the model from which it was fine-tuned"
            )
        languages = config.get("lang_to_id") or {}
        return SpecialTokens(
            sot=int(config["decoder_start_token_id"]),
            eot=int(config["eos_token_id"]),
            no_timestamps=int(config["no_timestamps_token_id"]),
            suppress_tokens=tuple(config.get("suppress_tokens") or ()),
            begin_suppress_tokens=tuple(config.get("begin_suppress_tokens") or ()),
            max_initial_timestamp_index=int(config.get("max_initial_timestamp_index") or MAX_INITIAL_TIMESTAMP_INDEX),
            languages={name.strip("<|>"): int(token) for name, token in languages.items()},
            transcribe=int(config["task_to_id"]["transcribe"]) if languages else None,
        )

    def prompt(self, language: str | None) -> list[int]:
        """Return the prompt of a text with timestamps.

        Args:
          language: a code of `languages`; None for an English-only model.
        """
        if language is None or self.transcribe is None:
            return [self.sot]
        return [self.sot, self.languages[language], self.transcribe]
