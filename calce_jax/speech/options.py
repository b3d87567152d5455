"""The options of a transcription."""

from dataclasses import dataclass

from calce_jax.errors import UserError


class OptionsError(UserError):
    """Options that are invalid, or that the model does not support; the message names the field and the remedy."""


@dataclass(frozen=True)
class TranscriptionOptions:
    """Options of the transcription, with OpenAI's names and defaults.

    Attributes:
      language: a code such as "en"; None detects it in each file's first window.
      batch_size: windows per batch, over all devices of this host.
      temperatures: tried in order while a text fails `logprob_threshold` or `compression_ratio_threshold`; the text of
        the last one is taken as it is.
      logprob_threshold: a text fails if the mean log-probability of its tokens is below this.
      compression_ratio_threshold: a text fails if its bytes over its compressed bytes exceed this (it is repetitive).
      no_speech_threshold: a text that fails `logprob_threshold` is dropped if its no-speech probability exceeds this.
      condition_on_previous_text: whether the text so far is the prompt of the next window. The text is more consistent,
        but mistakes are repeated.
      vad_filter: whether a voice activity detector skips silent windows and drops segments without speech.
      seed: of the sampling at temperatures above 0.
      word_timestamps: whether captions have words with times, and begin and end with them.
      hotwords: words that are likely to be said, such as names; they are a prompt of every window, cut to half of the
        model's context.
      max_line_width: columns of a line of a caption; longer captions are broken, see
        `calce_jax.text.caption_lines.break_captions`.
      max_line_count: lines of a caption that is broken; 2 by default.
    """

    language: str | None = None
    batch_size: int = 16
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    logprob_threshold: float = -1.0
    compression_ratio_threshold: float = 2.4
    no_speech_threshold: float = 0.6
    condition_on_previous_text: bool = False
    vad_filter: bool = True
    seed: int = 0
    word_timestamps: bool = False
    hotwords: str | None = None
    max_line_width: int | None = None
    max_line_count: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionsError(f"batch_size: must be an int >= 1, got {self.batch_size}")
        if not self.temperatures or min(self.temperatures) < 0:
            raise OptionsError(f"temperatures: must be one or more numbers >= 0, got {self.temperatures}")
        if self.hotwords is not None and not self.hotwords.strip():
            raise OptionsError("hotwords: empty", 'give words that are likely to be said, such as "Jezero, Ingenuity"')
        for name, value in (("max_line_width", self.max_line_width), ("max_line_count", self.max_line_count)):
            if value is not None and value < 1:
                raise OptionsError(f"{name}: must be an int >= 1, got {value}")
        if self.max_line_count is not None and self.max_line_width is None:
            raise OptionsError("max_line_count: does nothing without max_line_width", "give both, or leave it out")
