"""Long sound, many files at once: windows of 30 s, each beginning where the last one ended.

Source: Radford et al. 2022, section 3.8. A file has one window in the queue at a time, because where the next begins
follows from it; a batch takes the first of the queue, whichever files they are of.
"""

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from calce_jax.errors import UserError
from calce_jax.models.whisper import Whisper
from calce_jax.speech.audio import read_sound
from calce_jax.speech.decode import Texts, Windows, detect_language, transcribe_windows
from calce_jax.speech.mel import FRAMES_PER_S, log_mel
from calce_jax.speech.segments import Segment, cut, repetitiveness
from calce_jax.speech.vad import Voices
from calce_jax.speech.whisper_model import SpeechModel
from calce_jax.text.text_row import Caption

# A silence this long ahead of a window is jumped over: a window's first time is at most a second after its begin.
SILENCE_S = 2.5
# Text that was guessed at above this temperature is not quoted to the next window.
QUOTED_BELOW = 0.5

Name = TypeVar("Name")


class OptionsError(UserError):
    """Options that are impossible, or do not fit the model; the message names the field and the remedy."""


@dataclass(frozen=True)
class Options:
    """How to transcribe; the numbers are OpenAI's.

    Attributes:
      language: its code, such as "en"; None to find out from each file's first words.
      batch_size: windows at a time, over all devices of this host.
      temperatures: tried in order until a text is neither improbable nor repeats itself; the last one's is taken.
      improbable: mean log-probability of a token below which a text is.
      repetitive: ratio of its bytes to its compressed bytes above which a text is.
      silent: probability of no speech above which an improbable text is dropped.
      quote: whether a window is told what was said before it. Texts flow better, and mistakes are repeated.
      only_voices: whether windows and segments in which nobody speaks are left out.
      seed: of temperatures above 0.
    """

    language: str | None = None
    batch_size: int = 16
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    improbable: float = -1.0
    repetitive: float = 2.4
    silent: float = 0.6
    quote: bool = False
    only_voices: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise OptionsError(f"batch_size: {self.batch_size} is not positive", "give at least 1")
        if not self.temperatures or min(self.temperatures) < 0:
            raise OptionsError(f"temperatures: {self.temperatures}", "give at least one, and none below 0")


@dataclass(frozen=True)
class Sound:
    """A file as the model hears it.

    Attributes:
      mel: bands of the whole file.
      voices: stretches, in seconds, in which somebody speaks; None if that was not asked.
    """

    mel: Float[np.ndarray, "F C"]
    voices: list[tuple[float, float]] | None

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.mel) / FRAMES_PER_S


@dataclass(frozen=True)
class Transcript:
    """What is said in a file, in order of time; `language` is a code, None where nobody speaks."""

    captions: list[Caption]
    language: str | None
    seconds: float


class Transcriber:
    """A model on this host's devices, ready for any number of files.

    Args:
      model: from `open_whisper`.
      options: how.
      devices: that share a batch; all of this host unless given.

    Raises:
      OptionsError: the model does not know the language.
    """

    def __init__(self, model: SpeechModel, options: Options, devices: Sequence[Any] | None = None):
        devices = list(jax.local_devices() if devices is None else devices)
        self.model, self.options = model, options
        self._language = _known(options.language, model)
        self._devices = devices[: options.batch_size]
        self._mesh = jax.make_mesh((len(self._devices),), ("data",), axis_types=(AxisType.Auto,), devices=self._devices)
        graph, params = nnx.split(model.whisper)
        self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
        self._rows = NamedSharding(self._mesh, P("data"))
        config, vocabulary = model.whisper.config, model.vocabulary
        self._frames = config.frames
        start = len(vocabulary.prompt(self._language or next(iter(vocabulary.languages), None)))
        self._quoted = config.text_positions // 2 - 1 if options.quote else 0
        self._width = start + (self._quoted + 1 if options.quote else 0)

        self._write = self._program(
            graph,
            partial(
                transcribe_windows,
                vocabulary=vocabulary,
                longest=config.text_positions - self._width,
                dtype=model.dtype,
            ),
        )
        self._detect = self._program(graph, partial(detect_language, vocabulary=vocabulary, dtype=model.dtype))

    def _program(self, graph: Any, function: Callable[[Whisper, Any], Any]) -> Callable[[Any, Any], Any]:
        """Compile; each device decodes its own rows and stops when they end, and nothing is exchanged."""

        def run(params: Any, rows: Any) -> Any:
            return function(nnx.merge(graph, params), rows)

        return jax.jit(
            jax.shard_map(run, mesh=self._mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False)
        )

    def listen(self, path: str | Path) -> Sound:
        """Read a file's sound; on the host alone, so that threads can do it ahead.

        Raises:
          NoSound, SoundError: as `read_sound`.
        """
        voices, pieces = Voices(), read_sound(path)
        mel = log_mel(voices.over(pieces) if self.options.only_voices else pieces, self.model.whisper.config.mels)
        return Sound(mel, voices.intervals() if self.options.only_voices else None)

    def transcribe(self, sounds: Iterable[tuple[Name, Sound]]) -> Iterator[tuple[Name, Transcript]]:
        """Yield the transcript of each file as it is finished.

        Args:
          sounds: named files. One is drawn whenever the queue has room for it.
        """
        waiting, queue = iter(sounds), deque[_File[Name]]()
        while True:
            while len(queue) < self.options.batch_size and (named := next(waiting, None)) is not None:
                file = _File(*named, language=self._language)
                if file.has_more():
                    queue.append(file)
                else:
                    yield file.name, file.transcript(self.model)
            if not queue:
                return
            batch = [queue.popleft() for _ in range(min(len(queue), self.options.batch_size))]
            for file, answer in zip(batch, self._ask(batch), strict=True):
                self._take(file, *answer)
                if file.has_more():
                    queue.append(file)
                else:
                    yield file.name, file.transcript(self.model)

    def _ask(self, files: Sequence["_File"]) -> list[tuple[list[int], float, float]]:
        """Return tokens, mean log-probability and probability of silence of each file's present window."""
        vocabulary, rows = self.model.vocabulary, self.rows_of(len(files))
        mel = np.zeros((rows, self._frames, self.model.whisper.config.mels), np.float32)
        for row, file in enumerate(files):
            window = file.sound.mel[file.seek : file.seek + self._frames]
            mel[row, : len(window)] = window
        mel = jax.device_put(mel, self._rows)
        if vocabulary.languages and any(file.language is None for file in files):
            codes = {token: code for code, token in vocabulary.languages.items()}
            for file, token in zip(files, np.asarray(self._detect(self._params, mel)), strict=False):
                file.language = file.language or codes[int(token)]
        # Rows that are left over repeat the first one.
        filled = [*files, *[files[0]] * (rows - len(files))]
        prompts = [self._prompt(file) for file in filled]
        windows = Windows(
            mel=mel,
            prompt=self._aligned(prompts),
            prompt_length=np.array([len(prompt) for prompt in prompts], np.int32),
            temperature=np.array([self.options.temperatures[file.attempt] for file in filled], np.float32),
            seed=np.array([self._seed(file) for file in filled], np.uint32),
        )
        texts: Texts = jax.device_get(self._write(self._params, jax.device_put(windows, self._rows)))
        written = [tokens[:length].tolist() for tokens, length in zip(texts.tokens, texts.length, strict=True)]
        answers = zip(written, texts.log_probability.tolist(), texts.no_speech.tolist(), strict=True)
        return list(answers)[: len(files)]

    def _take(self, file: "_File", tokens: list[int], log_probability: float, no_speech: float) -> None:
        """Judge a window's text: keep it and go on, drop it and go on, or try again."""
        options = self.options
        frames = min(self._frames, len(file.sound.mel) - file.seek)
        improbable = log_probability < options.improbable
        repetitive = repetitiveness(self.model.text(tokens).strip()) > options.repetitive
        if improbable and no_speech > options.silent:
            file.go_on([], frames, quotable=True)
        elif (improbable or repetitive) and file.attempt + 1 < len(options.temperatures):
            file.attempt += 1
        else:
            segments, step = cut(tokens, time=self.model.vocabulary.time, seek=file.seek, frames=frames)
            file.go_on(segments, step, quotable=options.temperatures[file.attempt] < QUOTED_BELOW)

    def _prompt(self, file: "_File") -> list[int]:
        vocabulary = self.model.vocabulary
        said = [token for segment in file.segments for token in segment.tokens] if file.quotable else []
        quoted = [vocabulary.previous, *said[-self._quoted :]] if self._quoted and said else []
        return [*quoted, *vocabulary.prompt(file.language)]

    def _aligned(self, prompts: Sequence[Sequence[int]]) -> Int[np.ndarray, "B P"]:
        rows = np.full((len(prompts), self._width), self.model.vocabulary.end, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            row[len(row) - len(prompt) :] = prompt
        return rows

    def _seed(self, file: "_File") -> int:
        """Return a seed that depends on the window and not on what else is in the batch."""
        return zlib.crc32(f"{self.options.seed} {file.seek} {file.attempt}".encode())

    def rows_of(self, files: int) -> int:
        """Return the rows of a batch: the devices times a power of two, so that few programs are compiled."""
        devices = rows = len(self._devices)
        while rows < files:
            rows *= 2
        return min(rows, -(-self.options.batch_size // devices) * devices)


@dataclass
class _File(Generic[Name]):
    """A file on its way through the queue."""

    name: Name
    sound: Sound
    language: str | None
    seek: int = 0  # mel frame at which the present window begins
    attempt: int = 0  # index of the temperature
    quotable: bool = True
    segments: list[Segment] = field(default_factory=list)

    def has_more(self) -> bool:
        """Go on to where something may be said; False at the end."""
        if self.sound.voices is not None:
            at = self.seek / FRAMES_PER_S
            ahead = next((start for start, end in self.sound.voices if end > at), None)
            if ahead is None:
                return False
            if ahead - at > SILENCE_S:
                self.seek = int(ahead * FRAMES_PER_S)
        return self.seek < len(self.sound.mel)

    def go_on(self, segments: Sequence[Segment], frames: int, *, quotable: bool) -> None:
        """Keep segments in which somebody speaks, and move the window."""
        self.segments += [segment for segment in segments if self._is_spoken(segment)]
        self.seek += frames
        self.attempt, self.quotable = 0, quotable

    def transcript(self, model: SpeechModel) -> Transcript:
        """Return what was kept, as text."""
        said = [(segment, model.text(list(segment.tokens)).strip()) for segment in self.segments]
        captions = [Caption(segment.start, segment.end, text) for segment, text in said if text]
        return Transcript(captions, self.language, self.sound.seconds)

    def _is_spoken(self, segment: Segment) -> bool:
        if segment.end <= segment.start:
            return False
        voices = self.sound.voices
        return voices is None or any(start < segment.end and segment.start < end for start, end in voices)


def _known(language: str | None, model: SpeechModel) -> str | None:
    languages = model.vocabulary.languages
    if not languages:
        if language not in (None, "en"):
            raise OptionsError(
                f"language: {model.source} knows English alone, not {language!r}", "choose another model"
            )
        return "en"
    if language is not None and language not in languages:
        raise OptionsError(
            f"language: {model.source} does not know {language!r}", f"give one of {', '.join(languages)}"
        )
    return language
