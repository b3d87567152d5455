"""The sections of a run, the most wanted first, with their sizes and shares of the time."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from benchmarks.generation import compare_search
from benchmarks.gpu.ceilings import compare_copy, compare_matmul
from benchmarks.gpu.queries import random_batch
from benchmarks.gpu.sections import Section
from benchmarks.gpu.shared_weights import SharedModels
from benchmarks.gpu.speech import compare_whisper
from benchmarks.gpu.training import compare_train_step
from benchmarks.paired import BenchmarkSettings, ComparisonRow
from benchmarks.prediction import MAX_ANSWER_TOKENS, compare_prediction, make_selector
from benchmarks.qformer import compare_query_tokens
from benchmarks.t5 import compare_t5_encoder
from benchmarks.vision import compare_vit
from calce_jax.batch import Batch
from calce_jax.config import AttentionImplementation, LoraConfig, RematPolicy, RunConfig
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.selection import PromptSelection
from calce_jax.models.whisper import WhisperConfig
from calce_jax.presets.runs import get_preset

Stage = Literal[1, 2]


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Fields:
      model: sizes, with adapters.
      frames: of a video, in stage 1; None leaves those of the preset.
      buckets: prompt lengths; () leaves those of the preset.
      prompt: tokens of the prompt of T5's encoder and of the beam search.
      answer: tokens of the answers of the beam search.
      matrix: side of the matrices of the product.
      copy_bytes: of the array that is copied.
      whispers: sizes of Whisper by name.
      videos: of the reading pipeline.
    """

    model: CalceConfig
    frames: int | None
    buckets: tuple[int, ...]
    prompt: int
    answer: int
    matrix: int
    copy_bytes: int
    whispers: dict[str, WhisperConfig]
    videos: int

    @staticmethod
    def full() -> "Sizes":
        """The published sizes."""
        return Sizes(
            model=CalceConfig.full(),
            frames=None,
            buckets=(),
            prompt=1024,
            answer=MAX_ANSWER_TOKENS,
            matrix=8192,
            copy_bytes=2**32,
            whispers={name: WhisperConfig.from_name(name) for name in ("large-v3", "tiny")},
            videos=32,
        )

    @staticmethod
    def rehearsal() -> "Sizes":
        """Sizes with which every line runs on a CPU in seconds."""
        tiny = WhisperConfig(32, 2, 2, 64, 64, 2, 2, vocab=1650, mel_bins=8, audio_positions=16, text_positions=96)
        return Sizes(
            model=CalceConfig.tiny(t5_vocab=300, bert_vocab=200, lora=LoraConfig()),
            frames=6,
            buckets=(128, 192, 256),
            prompt=24,
            answer=8,
            matrix=64,
            copy_bytes=2**20,
            whispers={"large-v3": replace(tiny, encoder_depth=3), "tiny": tiny},
            videos=1,
        )


class Plan:
    """The sections of a run; models are made when the first of them needs them.

    Args:
      settings: rounds and device. After the section "ceilings" they hold peak and bandwidth.
      sizes: what is measured.
    """

    def __init__(self, settings: BenchmarkSettings, sizes: Sizes):
        self.settings, self.sizes = settings, sizes
        self._selectors: dict[Stage, Callable[[Batch], PromptSelection]] = {}

    def sections(self) -> list[Section]:
        """Return all sections in order; seconds are shares of 480."""
        return [
            Section("ceilings", 20, self.ceilings),
            Section("models", 30, self.make_models),
            Section("stage 1, 1 video", 60, partial(self.prediction, 1, 1)),
            Section("train step", 60, partial(self.train_step, 1, "none")),
            Section("ViT", 25, partial(self.vit, "xla")),
            Section("ViT, dpa", 20, partial(self.vit, "dpa")),
            Section("T5 encoder", 20, partial(self.t5_encoder, "xla")),
            Section("T5 encoder, dpa", 20, partial(self.t5_encoder, "dpa")),
            Section("stage 1, 4 videos", 40, partial(self.prediction, 1, 4)),
            Section("stage 2, 1 video", 40, partial(self.prediction, 2, 1)),
            Section("beam search", 25, self.beam_search),
            Section("Q-Former", 10, self.qformer),
            Section("train step, remat", 30, partial(self.train_step, 1, "full")),
            *(Section(f"Whisper {name}", 15, partial(self.whisper, name)) for name in self.sizes.whispers),
            Section("stage 2, 4 videos", 40, partial(self.prediction, 2, 4)),
            Section("reading", 10, self.reading),
        ]

    @cached_property
    def models(self) -> SharedModels:
        """Both models."""
        return SharedModels(self.sizes.model, self.settings)

    def run(self, stage: Stage) -> RunConfig:
        """Return the preset of QVHighlights, with the frames and prompt lengths of the sizes.

        Of the blocks of captions it has the one that the captions of `random_batch` fill: a run computes no other.
        """
        run = get_preset(f"qvhighlights,stage={stage}")
        run = replace(run, data=replace(run.data, caption_blocks=1))
        if self.sizes.frames is not None:
            run = replace(run, data=replace(run.data, frames=stage * self.sizes.frames, captions=4))
            run = replace(run, keyframes=replace(run.keyframes, clusters=3), text=replace(run.text, bert_tokens=20))
        if self.sizes.buckets:
            run = replace(run, text=replace(run.text, buckets=self.sizes.buckets))
        return run

    def select(self, stage: Stage, batch: Batch) -> PromptSelection:
        """Return key frames and captions of a batch; the program is compiled once per stage."""
        if stage not in self._selectors:
            self._selectors[stage] = make_selector(self.models.calce(), self.run(stage))
        return self._selectors[stage](batch)

    def ceilings(self) -> Iterator[ComparisonRow]:
        """Measure what the device reaches; later rows are given as shares of it."""
        product = compare_matmul(self.settings, self.sizes.matrix)
        self.settings = replace(self.settings, peak=max(product.notes["TFLOP/s"], product.notes["their TFLOP/s"]))
        yield product
        copied = compare_copy(self.settings, self.sizes.copy_bytes)
        self.settings = replace(self.settings, bandwidth=max(copied.notes["GB/s"], copied.notes["their GB/s"]))
        yield copied

    def make_models(self) -> Iterator[ComparisonRow]:
        """Make both models, so that the first row does not need its time for that; measures nothing."""
        self.models.calce()
        self.models.blip2  # noqa: B018  (cached)
        yield from ()

    def prediction(self, stage: Stage, videos: int) -> Iterator[ComparisonRow]:
        """Measure a prediction of one query per video, from pixels to answers."""
        run = self.run(stage)
        batch = random_batch(run, self.models.model_config, videos)
        noun = "video" if videos == 1 else "videos"
        name = f"stage {stage} of {videos} {noun} of {run.data.frames} frames"
        selection = self.select(stage, batch)
        yield compare_prediction(
            self.settings, name, self.models.calce(), self.models.blip2, run=run, batch=batch, selection=selection
        )

    def train_step(self, videos: int, remat: RematPolicy) -> Iterator[ComparisonRow]:
        """Measure a training step of stage 1."""
        run = self.run(1)
        batch = random_batch(run, self.models.model_config, videos)
        name = f"train step with LoRA, {videos} video of {run.data.frames} frames"
        yield compare_train_step(
            self.settings, name, self.models, run=run, batch=batch, selection=self.select(1, batch), remat=remat
        )

    def vit(self, attention: AttentionImplementation) -> Iterator[ComparisonRow]:
        """Measure the vision tower on the frames of a video."""
        frames, ours = self.run(1).data.frames, self.models.calce(attention).vit
        name, theirs = f"ViT, {frames} frames, attention {attention}", self.models.blip2.vision_model
        yield compare_vit(self.settings, name, ours, theirs, count=frames, counted=self.models.calce().vit)

    def qformer(self) -> Iterator[ComparisonRow]:
        """Measure the Q-Former on the frames of a video."""
        shape = self.run(1).data.frames, self.sizes.model.vit.num_tokens
        ours = self.models.calce().qformer
        yield compare_query_tokens(self.settings, f"Q-Former, {shape[0]} frames", ours, self.models.blip2, shape)

    def t5_encoder(self, attention: AttentionImplementation) -> Iterator[ComparisonRow]:
        """Measure T5's encoder on one prompt."""
        ours, theirs = self.models.calce(attention).t5, self.models.blip2.language_model.encoder
        name = f"T5 encoder, {self.sizes.prompt} tokens, attention {attention}"
        yield compare_t5_encoder(
            self.settings, name, ours, theirs, length=self.sizes.prompt, counted=self.models.calce().t5
        )

    def beam_search(self) -> Iterator[ComparisonRow]:
        """Measure the search for answers to one encoded prompt."""
        prompt, answer, beams = self.sizes.prompt, self.sizes.answer, 5
        name = f"search of {beams} beams, {prompt} tokens, answers of {answer}"
        ours, theirs = self.models.calce().t5, self.models.blip2.language_model
        yield compare_search(self.settings, name, ours, theirs, length=prompt, answer_length=answer, beams=beams)

    def whisper(self, name: str) -> Iterator[ComparisonRow]:
        """Measure a size of Whisper."""
        yield from compare_whisper(self.settings, name, self.sizes.whispers[name], batch_size=4)

    def reading(self) -> Iterator[ComparisonRow]:
        """Measure the pipeline that feeds the device, on one core of the host, without and with augmentation."""
        # Needs simplejpeg, PyAV, TFDS and grain, which no other section does.
        from benchmarks.reading import compare_reading, write_tables  # noqa: PLC0415

        settings, cores = replace(self.settings, device="cpu", threads=1), os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})  # of this thread and of those that it starts
        try:
            with TemporaryDirectory() as folder:
                write_tables(Path(folder), self.sizes.videos)
                yield from compare_reading(settings, Path(folder))
        finally:
            os.sched_setaffinity(0, cores)
