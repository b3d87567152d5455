"""The folder of a run of `benchmarks.full_size`: its files, and the presets that its commands use."""

import argparse
import json
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from calce_jax.checkpoints.convert.convert import model_config_of
from calce_jax.config import ModelSize, RunConfig, packaged_path, to_dict, validate
from calce_jax.errors import UserError
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.presets.runs import get_preset
from calce_jax.search.samples import load_samples
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_space import format_bytes, free_bytes

DATASET = "qvhighlights"
SAMPLE_VIDEOS = [sample.video for sample in load_samples()][:2]
NEEDED_BYTES = 60 * 10**9
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Workspace:
    """Names of the files of a run.

    Attributes:
      root: the folder of everything that is written.
      size: of the model; the smaller ones rehearse.
      tokenizers: folder with `t5/` and `bert/`; None takes those of the preset.
      source_videos: the two videos, each with an .srt of its name beside it, or without captions.
      frames: of a video in stage 1, of which stage 2 has twice as many; None takes the preset's.
    """

    root: Path
    size: ModelSize
    tokenizers: Path | None
    source_videos: tuple[Path, ...]
    frames: int | None = None

    @staticmethod
    def of(args: argparse.Namespace) -> "Workspace":
        """Return the workspace of the command line, see `add_arguments`."""
        return Workspace(args.out.absolute(), args.size, args.tokenizers, tuple(args.videos), args.frames)

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Add the options that describe a workspace."""
        parser.add_argument("--out", type=Path, default=Path("runs/full_size"), help="folder of all files and results")
        parser.add_argument(
            "--size", choices=("full", "small", "tiny"), default="full", help="the smaller ones rehearse"
        )
        parser.add_argument("--tokenizers", type=Path, help="folder with t5/ and bert/, of Flan-T5 and BERT")
        parser.add_argument("--videos", type=Path, nargs=2, default=SAMPLE_VIDEOS, help="two videos, of at most 150 s")
        parser.add_argument("--frames", type=int, help="of a video in stage 1, at least 12; twice as many in stage 2")

    def arguments(self) -> list[str]:
        """Return the options that give the same workspace again."""
        tokenizers = [] if self.tokenizers is None else [f"--tokenizers={self.tokenizers}"]
        frames = [] if self.frames is None else [f"--frames={self.frames}"]
        videos = ["--videos", *map(str, self.source_videos)]
        return [f"--out={self.root}", f"--size={self.size}", *tokenizers, *frames, *videos]

    @property
    def blip2(self) -> Path:
        """BLIP-2 in the layout of the Hugging Face hub."""
        return self.root / "published/blip2"

    @property
    def bert(self) -> Path:
        """BERT in the layout of the Hugging Face hub."""
        return self.root / "published/bert"

    def checkpoint(self, stage: int) -> Path:
        """A checkpoint in the layout of the original."""
        return self.root / f"published/stage{stage}.pth"

    @property
    def base(self) -> Path:
        """The converted base weights."""
        return self.root / "weights/base.safetensors"

    @property
    def videos(self) -> Path:
        """The folder of both videos."""
        return self.root / "videos"

    def annotations(self, split: str) -> Path:
        """The query of a split."""
        return self.root / f"{split}.jsonl"

    def merged(self, split: str) -> Path:
        """The annotations with the windows of stage 1."""
        return self.root / f"merged_{split}.jsonl"

    def predictions(self, stage: int, split: str) -> Path:
        """What a stage predicted."""
        return self.root / f"predictions_stage{stage}_{split}.jsonl"

    @property
    def prepared(self) -> Path:
        """The prepared tables."""
        return self.root / "prepared"

    @property
    def features(self) -> Path:
        """The stored output of the vision tower for every frame."""
        return self.root / "features"

    @property
    def back(self) -> Path:
        """BLIP-2, converted in and out again."""
        return self.root / "back/blip2"

    @property
    def original(self) -> Path:
        """A workdir with the weights of the original's checkpoint of stage 1."""
        return self.root / "original_stage1"

    @property
    def checkpoint_back(self) -> Path:
        """The original's checkpoint, converted in and out again."""
        return self.root / "back/stage1.pth"

    def workdir(self, stage: int) -> Path:
        """The workdir of a stage."""
        return self.root / f"stage{stage}"

    def overrides(self, stage: int) -> dict[str, Any]:
        """Return the fields of the config, by name, that differ from the preset: where files are, one row at a time.

        A rehearsal compiles one prompt length.
        """
        fields: dict[str, Any] = {
            "weights.base": str(self.base),
            "data.directory": str(self.prepared),
            "data.batch": 1,
            "data.eval_batch": 1,
            "data.workers": 0,
            "data.group": 1,
            "mesh": "single",
            "optimizer.accumulate": 1,
            "loop.log_every": 1,
            "loop.samples": 0,
        }
        if self.size != "full":
            fields["text.buckets"] = get_preset(self.preset(stage)).text.buckets[-1:]
        if self.frames is not None:
            fields["data.frames"] = self.frames * stage
        if self.tokenizers is not None:
            fields |= {f"text.{name}_tokenizer": str(self.tokenizers / name) for name in ("t5", "bert")}
        return fields

    def config_flags(self, stage: int) -> list[str]:
        """Return the flags of a command that trains or encodes."""
        return [
            f"--config={self.preset(stage)}",
            *(f"--config.{name}={value}" for name, value in self.overrides(stage).items()),
        ]

    def preset(self, stage: int) -> str:
        """Return the name of a stage's preset."""
        return f"{DATASET},stage={stage},size={self.size}"

    def run_config(self, stage: int) -> RunConfig:
        """Return the config that `config_flags` give."""
        values = to_dict(get_preset(self.preset(stage)))
        for name, value in self.overrides(stage).items():
            *groups, field = name.split(".")
            reduce(lambda group, key: group[key], groups, values)[field] = value
        return validate(values)

    def model_config(self, dtype: Dtype = "bfloat16") -> CalceConfig:
        """Return the sizes of the model."""
        return replace(model_config_of(self.run_config(1)), dtype=dtype)


def check_inputs(workspace: Workspace) -> None:
    """Check what the steps need before the first writes gigabytes.

    Raises:
      UserError: a config is impossible; a video or a tokenizer is missing; or the disk has too little room.
    """
    run = workspace.run_config(1)
    workspace.run_config(2)
    for video in workspace.source_videos:
        if not video.is_file():
            raise UserError(f"{video}: no such video", "check --videos")
    for folder in (run.text.t5_tokenizer, run.text.bert_tokenizer):
        if not packaged_path(folder).is_dir():
            raise UserError(f"{folder}: no such tokenizer", "give a folder with t5/ and bert/ as --tokenizers")
    started = (workspace.root / "results").is_dir()
    if workspace.size == "full" and not started and (free := free_bytes(workspace.root)) < NEEDED_BYTES:
        raise UserError(
            f"{workspace.root}: {format_bytes(free)} are free, and a run needs {format_bytes(NEEDED_BYTES)}",
            "give an --out on another disk",
        )


def claim_folder(workspace: Workspace) -> None:
    """Note in the folder of a run what it was made with.

    Raises:
      UserError: it was made with other options, whose results would be taken for those of these.
    """
    path, arguments = workspace.root / "workspace.json", workspace.arguments()[1:]
    made_with = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else arguments
    if made_with != arguments:
        raise UserError(
            f"{workspace.root}: was made with {' '.join(made_with)}, not with {' '.join(arguments)}",
            "give another --out, or remove it",
        )
    write_atomic(path, json.dumps(arguments) + "\n")
