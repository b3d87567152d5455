"""The tokens of a Whisper that are no text: prompts, languages, times, and what must not be written.

All are read from the model's `generation_config.json`: English-only, multilingual and later models are one case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Seconds between two times that can be written.
TIME_STEP_S = 0.02
# A window's first time is at most this many steps (one second) after its begin, where the model does not say.
FIRST_TIME = 50


@dataclass(frozen=True)
class Vocabulary:
    """Token ids.

    Attributes:
      start: before every text.
      end: after it.
      no_times: stands before a text without times.
      previous: begins a prompt that quotes what was said before.
      no_speech: what the model writes where nobody speaks.
      suppress: never written: signs that are not spoken, and prompts.
      suppress_first: not written as the first token: a blank, and the end.
      first_time: the most steps of 0.02 s at which a window's first text may begin.
      languages: by code, such as "en"; empty for an English-only model.
      transcribe: the task; None for an English-only model.
    """

    start: int
    end: int
    no_times: int
    suppress: tuple[int, ...]
    suppress_first: tuple[int, ...]
    first_time: int
    languages: Mapping[str, int]
    transcribe: int | None

    @property
    def time(self) -> int:
        """The token of time 0; later times follow."""
        return self.no_times + 1

    @property
    def no_speech(self) -> int:
        """Precedes `no_times` in every published vocabulary."""
        return self.no_times - 1

    @property
    def previous(self) -> int:
        """Precedes `no_speech` in every published vocabulary."""
        return self.no_times - 2

    @staticmethod
    def from_hugging_face(config: Mapping[str, Any]) -> "Vocabulary":
        """Read the contents of a `generation_config.json`.

        Raises:
          ValueError: a field is missing.
        """
        needed = ["decoder_start_token_id", "eos_token_id", "no_timestamps_token_id"]
        if config.get("is_multilingual", False):
            needed += ["lang_to_id", "task_to_id"]
        if missing := [name for name in needed if config.get(name) is None]:
            raise ValueError(f"{', '.join(missing)}: missing; fetch the model's generation_config.json again")
        languages = config.get("lang_to_id") or {}
        return Vocabulary(
            start=int(config["decoder_start_token_id"]),
            end=int(config["eos_token_id"]),
            no_times=int(config["no_timestamps_token_id"]),
            suppress=tuple(config.get("suppress_tokens") or ()),
            suppress_first=tuple(config.get("begin_suppress_tokens") or ()),
            first_time=int(config.get("max_initial_timestamp_index") or FIRST_TIME),
            languages={name.strip("<|>"): int(token) for name, token in languages.items()},
            transcribe=int(config["task_to_id"]["transcribe"]) if languages else None,
        )

    def prompt(self, language: str | None) -> list[int]:
        """Return the tokens before a text with times, in a language; None for an English-only model."""
        if language is None or self.transcribe is None:
            return [self.start]
        return [self.start, self.languages[language], self.transcribe]
