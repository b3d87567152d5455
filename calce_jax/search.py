"""Both stages on any one video: a file and sentences in, moments and a page out."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from calce_jax.batch import Batch
from calce_jax.captions import clean, read_srt
from calce_jax.inference import Answer, read_answers
from calce_jax.input_pipeline import text_sizes
from calce_jax.input_pipeline.rows import RowMaker, as_batch
from calce_jax.items import items_of
from calce_jax.outputs import write_output
from calce_jax.prompt import Caption, PromptWriter, longest_answer
from calce_jax.report.page import write_page
from calce_jax.report.views import query_view
from calce_jax.trained import Trained, open_trained
from calce_jax.training.material import input_config
from calce_jax.video import encode_jpeg, read_frames
from data.moments import Example

PICTURE_SIZE = 160  # pixels of a side of the frames on the page


class SearchError(ValueError):
    """A search cannot be made; the message says what is missing and the remedy."""


@dataclass(frozen=True)
class Found:
    """What a search found for one sentence, best first: [start, end, score]; `answers` by stage."""

    example: Example
    answers: dict[str, Answer]

    @property
    def moments(self) -> list[list[float]]:
        """The last stage's."""
        return list(self.answers.values())[-1].moments.windows


class Searcher:
    """Two trained runs, ready for any video.

    Args:
      checkpoint: a folder with the workdirs `stage1` and `stage2`, such as the demo's.

    Raises:
      SearchError: it has no such workdirs.
      ConfigError, CheckpointError, TokenizerError: a run cannot be opened.
    """

    def __init__(self, checkpoint: str | Path):
        folders = [Path(checkpoint) / f"stage{stage}" for stage in (1, 2)]
        missing = [str(folder) for folder in folders if not (folder / "config.json").is_file()]
        if missing:
            raise SearchError(
                f"{checkpoint}: no trained run in {' and '.join(missing)}; give the folder that holds the workdirs "
                "stage1 and stage2 (`make demo` makes runs/demo)"
            )
        self.stages = {f"stage {n}": open_trained(folder) for n, folder in enumerate(folders, 1)}

    def search(self, video: str | Path, queries: Sequence[str], srt: str | Path | None = None) -> list[Found]:
        """Find the moments of each sentence in one video.

        Raises:
          SearchError: a query is empty.
          VideoError: the video cannot be read.
          CaptionError, FileNotFoundError: the captions cannot.
        """
        if empty := [n for n, query in enumerate(queries, 1) if not query.strip()]:
            raise SearchError(f"query {empty[0]} is empty; say in a sentence what to look for")
        frames = max(trained.config.data.frames for trained in self.stages.values())
        size = next(iter(self.stages.values())).sizes.vit.image_size
        looked = read_frames(video, frames, size)
        captions = read_srt(srt) if srt else []
        examples = [
            Example(
                qid=number,
                video=Path(video).name,
                row=0,
                query=query.strip(),
                items=items_of(query),
                duration=looked.duration,
                windows=np.zeros((0, 2)),
                stage1_windows=None,
                kind=None,
                keyframes=encode_jpeg(looked.frames),
                indices=looked.indices,
                times=looked.times,
                total=looked.total,
                rate=looked.rate,
                captions=[(float(caption.start), float(caption.end), caption.text) for caption in captions],
            )
            for number, query in enumerate(queries)
        ]
        answers: list[dict[str, Answer]] = [{} for _ in examples]
        for name, trained in self.stages.items():
            asked = ask(trained, examples)
            for found, answer in zip(answers, asked, strict=True):
                found[name] = answer
            examples = [
                replace(example, stage1_windows=_windows(answer))
                for example, answer in zip(examples, asked, strict=True)
            ]
        return [Found(example, found) for example, found in zip(examples, answers, strict=True)]


def ask(trained: Trained, examples: Sequence[Example]) -> list[Answer]:
    """Ask a run about examples that are in no table, in batches of the size it was evaluated with."""
    config, tokenizers = trained.config, trained.tokenizers
    inputs = input_config(config, config.data.eval_split, trained.sizes, training=False)
    writer = PromptWriter(
        tokenizers.t5, tokenizers.bert, text_sizes(inputs), stage=config.stage, behaviour=config.behaviour
    )
    make = RowMaker(writer, image_size=inputs.image_size, windows=inputs.windows, use_captions=inputs.use_captions)
    predict = trained.predictor(longest_answer(tokenizers.t5, max(example.duration for example in examples)))
    # One sentence is the common case, and a batch of its own for it is compiled as quickly as a larger one.
    devices = trained.mesh.shape["data"] * trained.mesh.shape["fsdp"]
    size = -(-min(inputs.batch_size, len(examples)) // devices) * devices
    answers: list[Answer] = []
    for first in range(0, len(examples), size):
        rows = [make(example, n, None) for n, example in enumerate(examples[first : first + size], first)]
        rows += [make.filler(rows[0])] * (size - len(rows))
        batch = Batch(**as_batch(rows))
        answers += read_answers(
            batch, predict(batch), tokenizers.t5, by=config.generation.rank, behaviour=config.behaviour
        )
    return answers


def write_results(out: str | Path, video: str | Path, found: Sequence[Found]) -> None:
    """Write `moments.json` and `index.html`, which plays the copy of the video beside it.

    Raises:
      OSError: the folder cannot be written.
    """
    out, video = Path(out), Path(video)
    source = _beside(out, video)
    looked = read_frames(video, len(found[0].example.keyframes), PICTURE_SIZE)
    pictures = [
        (float(second), jpeg) for second, jpeg in zip(looked.times, encode_jpeg(looked.frames, 80), strict=True)
    ]
    entry = {
        "video": str(video),
        "duration": found[0].example.duration,
        "queries": [_entry(each) for each in found],
    }
    write_output(out / "moments.json", json.dumps([entry], indent=2) + "\n")
    views = [query_view(each.example, each.answers, pictures, truth=False, video_src=source) for each in found]
    write_page(out / "index.html", f"Moments in {video.name}", views)


def _entry(found: Found) -> dict[str, Any]:
    answer = list(found.answers.values())[-1]
    said = clean([Caption(*caption) for caption in found.example.captions])
    kept = [second for second, kind in zip(found.example.times, answer.treatments, strict=False) if kind != "dropped"]
    return {
        "query": found.example.query,
        "moments": [{"start": start, "end": end, "score": score} for start, end, score in found.moments],
        "captions": [[said[n].start, said[n].end, said[n].text] for n in answer.used],
        "frames": [round(float(second), 2) for second in kept],
    }


def _beside(out: Path, video: Path) -> str:
    """Copy the video next to the page, unless it is there, so that the folder can be moved; return its address."""
    out.mkdir(parents=True, exist_ok=True)
    copy = out / video.name
    if not (copy.exists() and copy.samefile(video)) and copy.resolve() != video.resolve():
        part = copy.with_name(copy.name + ".part")
        shutil.copyfile(video, part)
        part.replace(copy)
    return quote(video.name)


def _windows(answer: Answer) -> np.ndarray | None:
    """Return what stage 2 is told: the windows in order of time, or nothing where stage 1 found none."""
    windows = sorted(window[:2] for window in answer.moments.windows)
    return np.array(windows, np.float64) if windows else None
