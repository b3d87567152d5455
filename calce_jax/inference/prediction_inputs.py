"""What predictions depend on, so that an interrupted job is continued only where nothing has changed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calce_jax.config import PATH_FIELDS, flatten, is_ignored_on_resume, packaged_path, to_dict
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.dataset import MomentDataset, table_dir
from calce_jax.input_pipeline.example import Query
from calce_jax.storage.provenance import file_hash


def prediction_inputs(model: TrainedModel, dataset: MomentDataset, split_queries: Sequence[Query]) -> dict[str, Any]:
    """Return everything that the predictions of a split depend on, by name, as JSON values.

    Files and folders are given by the SHA-256 of their contents, not by path; large ones (base weights, the videos of
    the tables) by name, size and time of the last change.

    Raises:
      OSError: a file of the run is missing.
    """
    config = model.config
    fields = {
        f"config.{name}": value
        for name, value in flatten(to_dict(config))
        if name not in (*PATH_FIELDS, "data.group") and not is_ignored_on_resume(name)
    }
    queries = [
        (query.qid, query.video, query.query, query.items, query.duration, _to_list(query.stage1_windows))
        for query in split_queries
    ]
    videos = sorted(table_dir(dataset.folder, "videos").glob(f"*-{dataset.split}.*"))
    checkpoint, base, features = model.checkpoint, config.weights.base, config.data.features
    return fields | {
        "split": dataset.split,
        "queries": len(queries),
        "queries.sha256": hashlib.sha256(json.dumps(queries).encode()).hexdigest(),
        "videos.files": hashlib.sha256(json.dumps([_stamp(path) for path in videos]).encode()).hexdigest(),
        "checkpoint.step": int(checkpoint.name) if checkpoint else None,
        "checkpoint.sha256": _folder_hash(checkpoint / "state") if checkpoint else None,
        "base": _stamp(packaged_path(base))[1:] if base else None,
        "features.sha256": file_hash(Path(features) / "features.json") if features else None,
        "t5_tokenizer.sha256": _folder_hash(packaged_path(config.text.t5_tokenizer)),
        "bert_tokenizer.sha256": _folder_hash(packaged_path(config.text.bert_tokenizer)),
    }


def _to_list(windows: Any) -> list[list[float]] | None:
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
