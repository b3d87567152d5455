"""The tokens of a Whisper that are no text: prompts, languages, times, and what must not be written.

All are read from the model's `generation_config.json`: English-only, multilingual and later models are one case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Seconds between two times that can be written.
TIME_STEP_S = 0.02
# A window's first time is at most this many steps (one second) after its begin, where the model does not say.
MAX_INITIAL_TIMESTAMP_INDEX = 50


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids.

    Attributes:
      sot: before every text.
      eot: after it.
      no_timestamps: stands before a text without times.
      sot_prev: begins a prompt that quotes what was said before.
      no_speech: what the model writes where nobody speaks.
      suppress_tokens: never written: signs that are not spoken, and prompts.
      begin_suppress_tokens: not written as the first token: a blank, and the end.
      max_initial_timestamp_index: the most steps of 0.02 s at which a window's first text may begin.
      languages: by code, such as "en"; empty for an English-only model.
      transcribe: the task; None for an English-only model.
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
        """The token of time 0; later times follow."""
        return self.no_timestamps + 1

    @property
    def no_speech(self) -> int:
        """Precedes `no_timestamps` in every published vocabulary."""
        return self.no_timestamps - 1

    @property
    def sot_prev(self) -> int:
        """Precedes `no_speech_prob` in every published vocabulary."""
        return self.no_timestamps - 2

    @staticmethod
    def from_hugging_face(config: Mapping[str, Any]) -> "SpecialTokens":
        """Read the contents of a `generation_config.json`.

        Raises:
          ValueError: a field is missing.
        """
        required = ["decoder_start_token_id", "eos_token_id", "no_timestamps_token_id"]
        if config.get("is_multilingual", False):
            required += ["lang_to_id", "task_to_id"]
        if missing := [name for name in required if config.get(name) is None]:
            raise ValueError(f"{', '.join(missing)}: missing; fetch the model's generation_config.json again")
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
        """Return the tokens before a text with times, in a language; None for an English-only model."""
        if language is None or self.transcribe is None:
            return [self.sot]
        return [self.sot, self.languages[language], self.transcribe]
