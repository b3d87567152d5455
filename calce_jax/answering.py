"""All queries of a split asked of a trained run, the answers written as they come, so that a long job can go on."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from calce_jax.checkpoints import file_hash
from calce_jax.hosts import agreed, is_first, meet, one_writer
from calce_jax.inference import Answer
from calce_jax.partial_predictions import PartialPredictions
from calce_jax.predictions import Prediction, prediction_row, read_predictions
from calce_jax.trained import Trained
from calce_jax.training.config import HARMLESS, flat, plain
from calce_jax.training.material import Split, answer_tokens, ask, open_split
from data.moments import Query

# Fields that name files; what is in these counts, wherever they lie.
PATHS = ("data.directory", "data.features", "weights.base", "weights.start", "text.t5_tokenizer", "text.bert_tokenizer")


def answer_split(trained: Trained, split: str, out: str | Path) -> list[Prediction]:
    """Ask every query of a split, and write the predictions.

    They go to `OUT.part` batch by batch; a second run of the same model over the same split goes on after an
    interruption with the first batch that is not complete there, see `calce_jax.partial_predictions`. The file gets its
    name when it holds one line a query, in their order. Several hosts share the work, and the folder of `out`.

    Args:
      trained: the run.
      split: of the prepared folder in its config.
      out: the JSONL file.

    Returns:
      The predictions, in the order of the queries.

    Raises:
      TablesError: there is no such prepared folder or split.
      LockError: another process writes this file (`OUT.lock`).
      PredictionError: something else wrote to `OUT.part` meanwhile.
      OSError: the file cannot be written.
    """
    config, out = trained.config, Path(out)
    opened = open_split(config, split, trained.tokenizers, trained.sizes)
    part, total, batch = PartialPredictions(out, opened.queries), len(opened.queries), config.data.eval_batch
    with one_writer(out.with_name(out.name + ".lock")):
        done = agreed(part.resume(made_of(trained, opened), batch) if is_first() else 0)
        if done < total:
            predict = trained.predictor(answer_tokens(config, opened.queries, trained.tokenizers.t5))
            answers = ask(config, opened, trained.tokenizers.t5, predict, first=done // batch)
            # All hosts know all answers; one writes them down.
            with open(part.path if is_first() else os.devnull, "a", encoding="utf-8") as file:
                for answer in _shown(answers, split, done, total):
                    write_line(file, json.dumps(prediction_row(predicted(opened.queries[answer.row], answer))))
        if is_first():
            part.finish()
        meet("answered")
        return read_predictions(out)


def made_of(trained: Trained, opened: Split) -> dict[str, Any]:
    """Return what the answers to a split depend on, by name, in values that JSON can hold.

    Names of folders are not among them: what they hold is, by SHA-256, or by size and time of the last change where
    it is too large to be read for this (base weights, the videos of the tables).

    Raises:
      OSError: a file of the run is gone.
    """
    config, tables = trained.config, opened.tables
    fields = {
        f"config.{name}": value
        for name, value in flat(plain(config))
        if name not in PATHS and not any(name == field or name.startswith(f"{field}.") for field in HARMLESS)
    }
    asked = [
        (query.qid, query.video, query.query, query.items, query.duration, _listed(query.stage1_windows))
        for query in opened.queries
    ]
    videos = sorted((tables.folder / "tables" / "videos").glob(f"*-{tables.split}.*"))
    checkpoint, base, features = trained.checkpoint, config.weights.base, config.data.features
    return fields | {
        "split": tables.split,
        "queries": len(asked),
        "queries.sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "videos.files": hashlib.sha256(json.dumps([_stamp(path) for path in videos]).encode()).hexdigest(),
        "checkpoint.step": int(checkpoint.name) if checkpoint else None,
        "checkpoint.sha256": _folder_hash(checkpoint / "state") if checkpoint else None,
        "base": _stamp(Path(base))[1:] if base else None,
        "features.sha256": file_hash(Path(features) / "features.json") if features else None,
        "t5_tokenizer.sha256": _folder_hash(Path(config.text.t5_tokenizer)),
        "bert_tokenizer.sha256": _folder_hash(Path(config.text.bert_tokenizer)),
    }


def _listed(windows: Any) -> list[list[float]] | None:
    return None if windows is None else windows.tolist()


def _stamp(path: Path) -> list[Any]:
    """Return a file's name, size, and time of the last change in nanoseconds."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _folder_hash(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [(path.relative_to(folder).as_posix(), file_hash(path)) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def write_line(file: TextIO, line: str) -> None:
    """Write a line so that it is there whatever comes after it.

    Raises:
      OSError: it cannot be written; names the file and the remedy.
    """
    try:
        file.write(line + "\n")
        file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {file.name} ({error.strerror}); make room and run again: it goes on from there",
        ) from error


def predicted(query: Query, answer: Answer) -> Prediction:
    """Return the answer to a query as it is written down."""
    duration = int(query.duration) if float(query.duration).is_integer() else query.duration
    found = answer.moments
    return Prediction(query.qid, query.query, query.video, found.windows, found.text, found.status, duration)


def _shown(answers: Iterator[Answer], split: str, done: int, total: int) -> Iterator[Answer]:
    return iter(
        tqdm(
            answers,
            desc=f"asking {split}",
            initial=done,
            total=total,
            unit="query",
            dynamic_ncols=True,
            disable=not is_first(),
        )
    )
