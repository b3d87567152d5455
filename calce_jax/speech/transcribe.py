"""Long-form transcription of many files at once, in windows of 30 s.

Source: Radford et al. 2022, section 3.8. A file has one window in the queue at a time, because the last timestamp of a
window decides where the next one begins; a batch takes the windows at the head of the queue, of any files.
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
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from calce_jax.distributed.devices import find_devices
from calce_jax.distributed.word_size import check_word_size
from calce_jax.models.whisper import Whisper
from calce_jax.speech.alignment import AlignOutputs, align_batch, first_positions, pack_texts
from calce_jax.speech.audio import read_audio
from calce_jax.speech.decode import DecodeInputs, DecodeOutputs, detect_language, transcribe_batch
from calce_jax.speech.mel import FRAMES_PER_SECOND, log_mel_spectrogram
from calce_jax.speech.options import OptionsError, TranscriptionOptions
from calce_jax.speech.segments import Segment, compression_ratio, split_segments
from calce_jax.speech.vad import VoiceActivityDetector
from calce_jax.speech.whisper_model import SpeechModel
from calce_jax.speech.words import add_words, split_words, time_words
from calce_jax.text.caption import Caption
from calce_jax.text.caption_lines import DEFAULT_LINE_COUNT, break_captions
from calce_jax.text.languages import language_code

# A silence at a window's start is skipped if it is longer than this; a window's first timestamp is at most 1 s.
MIN_SKIPPED_SILENCE_S = 2.5
# Text sampled at this temperature or above is not used as the prompt of the next window.
PROMPT_RESET_TEMPERATURE = 0.5

Name = TypeVar("Name")


@dataclass(frozen=True)
class AudioFeatures:
    """A file's input to the model.

    Attributes:
      mel: log-mel spectrogram of the whole file.
      speech_intervals: intervals of speech in seconds; None without a voice activity detector.
    """

    mel: Float[np.ndarray, "F C"]
    speech_intervals: list[tuple[float, float]] | None

    @property
    def seconds(self) -> float:
        """Duration of the audio."""
        return len(self.mel) / FRAMES_PER_SECOND


@dataclass(frozen=True)
class Transcript:
    """A file's captions in order of time, its language code (None if no window was decoded), and its duration."""

    captions: list[Caption]
    language: str | None
    seconds: float


class Transcriber:
    """Transcribes files with one model on this host's devices.

    Args:
      model: from `open_whisper`.
      options: of the transcription.
      devices: that share a batch; by default all local devices.

    Raises:
      OptionsError: the model does not support the language.
      UserError: JAX is set to numbers of 64 bits, or has no devices.
    """

    def __init__(self, model: SpeechModel, options: TranscriptionOptions, devices: Sequence[Any] | None = None):
        check_word_size()
        devices = find_devices(local=True) if devices is None else list(devices)
        self.model, self.options = model, options
        self._language = _check_language(options.language, model)
        self._devices = devices[: options.batch_size]
        self._mesh = jax.make_mesh((len(self._devices),), ("data",), axis_types=(AxisType.Auto,), devices=self._devices)
        graph, params = nnx.split(model.whisper)
        self._params = jax.device_put(params, NamedSharding(self._mesh, P()))
        self._batch_sharding = NamedSharding(self._mesh, P("data"))
        config, special_tokens = model.whisper.config, model.special_tokens
        self._mel_frames = config.mel_frames
        sot_length = len(special_tokens.prompt(self._language or next(iter(special_tokens.languages), None)))
        max_previous_tokens = config.text_positions // 2 - 1  # of them and hot words together
        self._hotwords = self._encode_hotwords()[:max_previous_tokens]
        self._max_previous_tokens = (
            max_previous_tokens - len(self._hotwords) if options.condition_on_previous_text else 0
        )
        max_prompt_tokens = len(self._hotwords) + self._max_previous_tokens
        self._prompt_width = sot_length + (max_prompt_tokens + 1 if max_prompt_tokens else 0)

        self._decode = self._compile(
            graph,
            partial(
                transcribe_batch,
                special_tokens=special_tokens,
                max_length=config.text_positions - self._prompt_width,
                dtype=model.dtype,
            ),
        )
        self._detect_language = self._compile(
            graph, partial(detect_language, special_tokens=special_tokens, dtype=model.dtype)
        )
        self._align = self._compile(
            graph,
            partial(align_batch, heads=model.alignment_heads, num_text_tokens=special_tokens.eot, dtype=model.dtype),
        )

    def _compile(self, graph: Any, function: Callable[[Whisper, Any], Any]) -> Callable[[Any, Any], Any]:
        """Jit a function of (whisper, inputs) so that each device runs it on its own rows, without communication."""

        def run(params: Any, inputs: Any) -> Any:
            return function(nnx.merge(graph, params), inputs)

        return jax.jit(
            jax.shard_map(run, mesh=self._mesh, in_specs=(P(), P("data")), out_specs=P("data"), check_vma=False)
        )

    def load_audio(self, path: str | Path) -> AudioFeatures:
        """Decode a file's audio and compute its features, on the host alone, so that threads can run ahead.

        Raises:
          NoAudioError, AudioError: as `read_audio`.
        """
        detector, samples = VoiceActivityDetector(), read_audio(path)
        mel = log_mel_spectrogram(
            detector.observe(samples) if self.options.vad_filter else samples, self.model.whisper.config.mel_bins
        )
        return AudioFeatures(mel, detector.intervals() if self.options.vad_filter else None)

    def transcribe(self, audio_files: Iterable[tuple[Name, AudioFeatures]]) -> Iterator[tuple[Name, Transcript]]:
        """Yield the name and the transcript of each file when it is finished.

        Args:
          audio_files: (name, features) of the files; the next one is taken when the queue has room for it.
        """
        remaining, queue = iter(audio_files), deque[_FileState[Name]]()
        while True:
            while len(queue) < self.options.batch_size and (named_audio := next(remaining, None)) is not None:
                file = _FileState(*named_audio, language=self._language)
                if file.advance_to_speech():
                    queue.append(file)
                else:
                    yield file.name, self._finish(file)
            if not queue:
                return
            batch = [queue.popleft() for _ in range(min(len(queue), self.options.batch_size))]
            windows = [
                self._accept_or_retry(file, *output)
                for file, output in zip(batch, self._decode_windows(batch), strict=True)
            ]
            if self.options.word_timestamps:
                self._add_words([(file, window) for file, window in zip(batch, windows, strict=True) if window])
            for file, window in zip(batch, windows, strict=True):
                if window is not None:
                    file.append(window)
                if file.advance_to_speech():
                    queue.append(file)
                else:
                    yield file.name, self._finish(file)

    def _decode_windows(self, files: Sequence["_FileState"]) -> list[tuple[list[int], float, float]]:
        """Return (tokens, mean log-probability, no-speech probability) of each file's current window."""
        special_tokens, num_rows = self.model.special_tokens, self.padded_batch_size(len(files))
        mel = jax.device_put(self._mel_windows(files, num_rows), self._batch_sharding)
        if special_tokens.languages and any(file.language is None for file in files):
            language_by_token = {token: code for code, token in special_tokens.languages.items()}
            for file, token in zip(files, np.asarray(self._detect_language(self._params, mel)), strict=False):
                file.language = file.language or language_by_token[int(token)]
        # Padding rows repeat the first file.
        padded_files = [*files, *[files[0]] * (num_rows - len(files))]
        prompts = [self._prompt(file) for file in padded_files]
        inputs = DecodeInputs(
            mel=mel,
            prompt=self._left_pad(prompts),
            prompt_length=np.array([len(prompt) for prompt in prompts], np.int32),
            temperature=np.array(
                [self.options.temperatures[file.temperature_index] for file in padded_files], np.float32
            ),
            seed=np.array([self._seed(file) for file in padded_files], np.uint32),
        )
        outputs: DecodeOutputs = jax.device_get(
            self._decode(self._params, jax.device_put(inputs, self._batch_sharding))
        )
        token_lists = [tokens[:length].tolist() for tokens, length in zip(outputs.tokens, outputs.length, strict=True)]
        results = zip(token_lists, outputs.avg_logprob.tolist(), outputs.no_speech_prob.tolist(), strict=True)
        return list(results)[: len(files)]

    def _mel_windows(self, files: Sequence["_FileState"], num_rows: int) -> Float[np.ndarray, "B F C"]:
        """Return the current windows, with zeros after the end of a file and in further rows."""
        mel = np.zeros((num_rows, self._mel_frames, self.model.whisper.config.mel_bins), np.float32)
        for row, file in enumerate(files):
            mel_window = file.audio.mel[file.seek : file.seek + self._mel_frames]
            mel[row, : len(mel_window)] = mel_window
        return mel

    def _accept_or_retry(
        self, file: "_FileState", tokens: list[int], avg_logprob: float, no_speech_prob: float
    ) -> "_Window | None":
        """Return a window with its text, or without if it is dropped; or set the file to the next temperature."""
        options = self.options
        frames = self._num_frames(file)
        is_improbable = avg_logprob < options.logprob_threshold
        is_repetitive = compression_ratio(self.model.decode_text(tokens).strip()) > options.compression_ratio_threshold
        if is_improbable and no_speech_prob > options.no_speech_threshold:
            return _Window([], frames, use_as_prompt=True)
        if (is_improbable or is_repetitive) and file.temperature_index + 1 < len(options.temperatures):
            file.temperature_index += 1
            return None
        segments, step = split_segments(
            tokens, timestamp_begin=self.model.special_tokens.timestamp_begin, seek=file.seek, num_frames=frames
        )
        is_cool = options.temperatures[file.temperature_index] < PROMPT_RESET_TEMPERATURE
        return _Window(segments, step, use_as_prompt=is_cool)

    def _num_frames(self, file: "_FileState") -> int:
        """Return the mel frames of the current window that lie in the file."""
        return min(self._mel_frames, len(file.audio.mel) - file.seek)

    def _add_words(self, windows: "Sequence[tuple[_FileState, _Window]]") -> None:
        """Align the windows that have text, in one batch, and give words to their segments."""
        special_tokens, max_tokens = self.model.special_tokens, self.model.whisper.config.text_positions
        windows = [(file, window) for file, window in windows if window.text_tokens(special_tokens.eot)]
        if not windows:
            return
        prompts = [[*special_tokens.prompt(file.language), special_tokens.no_timestamps] for file, _ in windows]
        # A text that fills the context has no room for two tokens more; its last words get no times.
        texts = [
            window.text_tokens(special_tokens.eot)[: max_tokens - len(prompt) - 1]
            for prompt, (_, window) in zip(prompts, windows, strict=True)
        ]
        files = [file for file, _ in windows]
        inputs = pack_texts(
            self._mel_windows(files, self.padded_batch_size(len(files))),
            [self._num_frames(file) for file in files],
            prompts,
            texts,
            eot=special_tokens.eot,
            max_tokens=max_tokens,
        )
        outputs: AlignOutputs = jax.device_get(self._align(self._params, jax.device_put(inputs, self._batch_sharding)))
        for row, (file, window) in enumerate(windows):
            # From the token before the text, which predicts its first one, to its last, which predicts the end.
            rows = slice(len(prompts[row]) - 1, len(prompts[row]) + len(texts[row]))
            words = split_words(texts[row], self.model.decode_text, file.language)
            positions = first_positions(outputs.likelihood[row, rows, : inputs.num_positions[row]])
            median = time_words(words, positions, outputs.probability[row, rows])
            window.segments = add_words(
                window.segments,
                words,
                median,
                offset=file.seek / FRAMES_PER_SECOND,
                last_speech_end=file.last_speech_end,
                eot=special_tokens.eot,
            )
            spoken = [word for segment in window.segments for word in segment.words]
            file.last_speech_end = spoken[-1].end if spoken else file.last_speech_end

    def _finish(self, file: "_FileState[Name]") -> Transcript:
        """Return the segments as captions, without empty ones, in lines."""
        texts = [(segment, self.model.decode_text(list(segment.tokens)).strip()) for segment in file.segments]
        captions = [Caption(segment.start, segment.end, text, segment.words) for segment, text in texts if text]
        if self.options.max_line_width is not None:
            max_line_count = self.options.max_line_count or DEFAULT_LINE_COUNT
            captions = break_captions(captions, self.options.max_line_width, max_line_count)
        return Transcript(captions, file.language, file.audio.seconds)

    def _encode_hotwords(self) -> list[int]:
        text = f" {self.options.hotwords.strip()}" if self.options.hotwords else ""
        return [int(token) for token in self.model.tokenizer.encode(text, add_special_tokens=False)]

    def _prompt(self, file: "_FileState") -> list[int]:
        special_tokens = self.model.special_tokens
        previous_tokens = [token for segment in file.segments for token in segment.tokens] if file.use_as_prompt else []
        previous_tokens = previous_tokens[-self._max_previous_tokens :] if self._max_previous_tokens else []
        previous_prompt = [*self._hotwords, *previous_tokens]
        if previous_prompt:
            previous_prompt = [special_tokens.sot_prev, *previous_prompt]
        return [*previous_prompt, *special_tokens.prompt(file.language)]

    def _left_pad(self, prompts: Sequence[Sequence[int]]) -> Int[np.ndarray, "B P"]:
        padded = np.full((len(prompts), self._prompt_width), self.model.special_tokens.eot, np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[len(row) - len(prompt) :] = prompt
        return padded

    def _seed(self, file: "_FileState") -> int:
        """Return a seed that depends on the window and the temperature, not on the rest of the batch."""
        return zlib.crc32(f"{self.options.seed} {file.seek} {file.temperature_index}".encode())

    def padded_batch_size(self, num_files: int) -> int:
        """Return the number of rows of a batch of files.

        The number of devices times a power of two, so that few programs are compiled; at most `batch_size`, rounded up
        to a multiple of the devices.
        """
        num_devices = num_rows = len(self._devices)
        while num_rows < num_files:
            num_rows *= 2
        return min(num_rows, -(-self.options.batch_size // num_devices) * num_devices)


@dataclass
class _Window:
    """A window that is done: its segments, by how many mel frames the next one begins later; whether it may prompt."""

    segments: list[Segment]
    num_frames: int
    use_as_prompt: bool

    def text_tokens(self, eot: int) -> list[int]:
        """Return the tokens of all segments without timestamps."""
        return [token for segment in self.segments for token in segment.tokens if token < eot]


@dataclass
class _FileState(Generic[Name]):
    """Progress of one file."""

    name: Name
    audio: AudioFeatures
    language: str | None
    seek: int = 0  # mel frame at which the current window begins
    temperature_index: int = 0
    use_as_prompt: bool = True  # whether `segments` may be the next prompt
    segments: list[Segment] = field(default_factory=list)
    last_speech_end: float = 0.0  # second at which the last word ends, where words have times

    def advance_to_speech(self) -> bool:
        """Skip silence before the current window; return False at the end of the file."""
        if self.audio.speech_intervals is not None:
            current_second = self.seek / FRAMES_PER_SECOND
            next_speech = next((start for start, end in self.audio.speech_intervals if end > current_second), None)
            if next_speech is None:
                return False
            if next_speech - current_second > MIN_SKIPPED_SILENCE_S:
                self.seek = int(next_speech * FRAMES_PER_SECOND)
        return self.seek < len(self.audio.mel)

    def append(self, window: _Window) -> None:
        """Append the segments of the current window that contain speech, and move on to the next one."""
        self.segments += [segment for segment in window.segments if self._has_speech(segment)]
        self.seek += window.num_frames
        self.temperature_index, self.use_as_prompt = 0, window.use_as_prompt

    def _has_speech(self, segment: Segment) -> bool:
        if segment.end <= segment.start:
            return False
        intervals = self.audio.speech_intervals
        return intervals is None or any(start < segment.end and segment.start < end for start, end in intervals)


def _check_language(language: str | None, model: SpeechModel) -> str | None:
    """Return the code of a language, given by a code or its English name in any case."""
    languages = model.special_tokens.languages
    if language is not None:
        # Also "ger", "deu" and "pt-BR", as files of captions are named.
        base_code = language_code(language).partition("-")[0]
        language = TO_LANGUAGE_CODE.get(language.strip().lower(), base_code)
    if not languages:
        if language not in (None, "en"):
            raise OptionsError(
                f"language: {model.source} is English-only, got {language!r}", "choose a multilingual model"
            )
        return "en"
    if language is not None and language not in languages:
        raise OptionsError(
            f"language: {model.source} does not support {language!r}", f"give one of {', '.join(languages)}"
        )
    return language
