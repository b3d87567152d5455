"""A trained model of both stages as one folder that can be moved, published and opened anywhere.

It holds safetensors, JSON and vocabularies; nothing in it is unpickled:

    base.safetensors            the weights of both stages before CALCE's training
    t5/, bert/                  the tokenizers
    stage1/config.json          the run; its paths begin with "$WORKDIR/", the folder of that file
    stage1/trained.safetensors  what the run trained, float32; the metadata of the run are in the header
    stage2/                     likewise
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from calce_jax.checkpoints.convert.convert import model_config_of
from calce_jax.checkpoints.convert.sources import base_weights_path, open_sources
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.checkpoints.convert.writer import check_free_space, write_safetensors
from calce_jax.checkpoints.manager import CheckpointError, Checkpoints
from calce_jax.checkpoints.params_file import RECORD_KEY, read_record
from calce_jax.checkpoints.restore import check_files
from calce_jax.checkpoints.workdir import BEST_METRIC, TRAINED_FILE, checkpoint_steps
from calce_jax.config import WORKDIR, RunConfig, WeightsConfig, packaged_path, read_config, to_dict
from calce_jax.storage.atomic_files import link_or_copy, write_atomic
from calce_jax.storage.provenance import file_hash, git_revision
from calce_jax.text.tokenizers import BERT_FILES, T5_FILES, tokenizer_hashes

BASE_FILE, CONFIG_FILE = "base.safetensors", "config.json"
STAGES = ("stage1", "stage2")
TOKENIZERS = ("t5", "bert")
# What a tokenizer is read from, and the settings beside its vocabulary.
TOKENIZER_FILES = (*dict.fromkeys(T5_FILES + BERT_FILES), "tokenizer_config.json", "special_tokens_map.json")
COMPLETE = (BASE_FILE, *(f"{stage}/{name}" for stage in STAGES for name in (CONFIG_FILE, TRAINED_FILE)))


@dataclass(frozen=True)
class StageRecord:
    """What is known of a trained stage.

    Attributes:
      config: of its run.
      checkpoint: the folder or file of its trained weights.
      metadata: that were saved with them.
      scores: measured on `config.data.eval_split` when they were saved, percent, by name of the metric; may be empty.
    """

    config: RunConfig
    checkpoint: Path
    metadata: Mapping[str, Any]
    scores: Mapping[str, float]


def is_model_folder(folder: Path) -> bool:
    """Return whether a folder has every file of the layout but the tokenizers, whose names differ."""
    return all((folder / name).is_file() for name in COMPLETE)


def write_tokenizers(folder: Path, sources: Mapping[str, Path]) -> None:
    """Copy tokenizers.

    Args:
      folder: of the model.
      sources: the folders of the tokenizers, by their names in `TOKENIZERS`.

    Raises:
      OSError: a file cannot be read or written.
      CheckpointError: a source is no folder with a vocabulary.
    """
    for name, source in sources.items():
        files = [source / file for file in TOKENIZER_FILES if (source / file).is_file()]
        if not files:
            raise CheckpointError(f"{source}: no vocabulary in this folder", "copy the tokenizer's files there")
        for file in files:
            write_atomic(folder / name / file.name, file.read_bytes())


def write_stage(workdir: Path, weights: Weights, run: RunConfig, source: Mapping[str, Any]) -> None:
    """Write the folder of one stage; base weights and tokenizers are beside it already.

    Args:
      workdir: `stage1` or `stage2` in the folder of the model.
      weights: with those that CALCE trained.
      run: its config; its paths are replaced.
      source: more metadata, such as {"start": {"kind": "converted"}}; no path of this machine belongs there.

    Raises:
      ConversionError: the weights have no adapters.
      OSError: a file cannot be written.
    """
    config = _published_config(run)
    local = _with_paths(config, workdir)
    record = {
        "config": to_dict(config),
        "lora": {"rank": run.lora.rank, "alpha": run.lora.alpha},
        "base": {"file": config.weights.base, "sha256": file_hash(local.weights.base)},
        "tokenizers": tokenizer_hashes(local),
        **source,
    }
    # The config comes last: with it the stage is complete.
    write_safetensors(workdir / TRAINED_FILE, weights.trainable_params(), {RECORD_KEY: json.dumps(record)})
    write_atomic(workdir / CONFIG_FILE, json.dumps(to_dict(config), indent=2) + "\n")


def export_model(source: Path, target: Path) -> list[StageRecord]:
    """Write the workdirs `stage1` and `stage2` of a folder as a model folder; the best checkpoint of each is taken.

    Args:
      source: the folder of the workdirs, or a model folder.
      target: an empty folder.

    Returns:
      What is known of each stage.

    Raises:
      ConfigError, CheckpointError, WeightsFileError, ConversionError: a run cannot be read, its files are not those
        that it was trained with, or the stages have different base weights or tokenizers.
      OSError: the folder cannot be written.
    """
    stages = [read_stage(source / stage) for stage in STAGES]
    bases = [base_weights_path(source / stage) for stage in STAGES]
    for stage in stages:
        check_files(stage.checkpoint, stage.metadata, stage.config)
    if len({file_hash(base) for base in set(bases)}) > 1:
        raise CheckpointError(
            f"{source}: stage1 and stage2 have different base weights", "publish two stages that were trained from one"
        )
    tokenizers = [_tokenizer_folders(stage.config) for stage in stages]
    if len({tuple(tokenizer_hashes(stage.config).values()) for stage in stages}) > 1:
        raise CheckpointError(f"{source}: stage1 and stage2 have different tokenizers", "train both with the same")
    check_free_space(target / BASE_FILE, bases[0].stat().st_size)
    link_or_copy(bases[0], target / BASE_FILE)
    write_tokenizers(target, tokenizers[0])
    for name, stage in zip(STAGES, stages, strict=True):
        weights = open_sources([("orbax", source / name)], model_config_of(stage.config), seed=stage.config.seed)
        start = dict(stage.metadata.get("start") or {"kind": "unknown"})
        more = {
            "start": {"kind": start["kind"]},
            "git": stage.metadata.get("git") or git_revision(),
            "jax": stage.metadata.get("jax") or jax.__version__,
            "scores": dict(stage.scores),
            "trained_with_items": bool(stage.metadata.get("trained_with_items", True)),
        }
        write_stage(target / name, weights, stage.config, more)
    return stages


def read_stage(workdir: Path) -> StageRecord:
    """Read what is known of a trained stage: of its best checkpoint, or its latest if none was scored.

    Raises:
      ConfigError, CheckpointError: there is no run, or no checkpoint of it, or it is damaged.
    """
    config = read_config(workdir)
    if checkpoint_steps(workdir):
        with closing(Checkpoints(workdir, read_only=True)) as checkpoints:
            best = checkpoints.best_step_and_metric
            step = best[0] if best else int(checkpoints.latest_step or 0)
            scores = {BEST_METRIC: best[1]} if best else {}
            return StageRecord(config, checkpoints.folder / str(step), checkpoints.read_metadata(step), scores)
    if not (workdir / TRAINED_FILE).is_file():
        raise CheckpointError(f"{workdir}: no checkpoint and no {TRAINED_FILE}", "give the workdir of a trained run")
    record = read_record(workdir / TRAINED_FILE)
    return StageRecord(config, workdir / TRAINED_FILE, record, record.get("scores") or {})


def check_self_contained(folder: Path) -> None:
    """Check that the configs of a model folder, which others may have written, name files inside it alone.

    Raises:
      CheckpointError: one names another file.
      ConfigError: a config is damaged.
    """
    for stage in STAGES:
        for field, path in _named_paths(read_config(folder / stage)):
            if path and not Path(path).resolve().is_relative_to(folder.resolve()):
                raise CheckpointError(
                    f"{folder / stage / CONFIG_FILE}: {field} names {path}, which is not part of the model",
                    "do not use this model, or ask its publisher",
                )


def _published_config(run: RunConfig) -> RunConfig:
    """Return the config with the paths of the layout, and without those of the machine that trained it."""
    above = f"{WORKDIR}../"
    return replace(
        run,
        data=replace(run.data, directory="", features=""),
        weights=WeightsConfig(base=f"{above}{BASE_FILE}", start=""),
        text=replace(run.text, t5_tokenizer=f"{above}t5", bert_tokenizer=f"{above}bert"),
    )


def _with_paths(config: RunConfig, workdir: Path) -> RunConfig:
    """Return a config of `_published_config` with the paths that its "$WORKDIR/" stands for."""
    model = workdir.parent
    return replace(
        config,
        weights=replace(config.weights, base=str(model / BASE_FILE)),
        text=replace(config.text, t5_tokenizer=str(model / "t5"), bert_tokenizer=str(model / "bert")),
    )


def _tokenizer_folders(config: RunConfig) -> dict[str, Path]:
    names = (config.text.t5_tokenizer, config.text.bert_tokenizer)
    return dict(zip(TOKENIZERS, map(packaged_path, names), strict=True))


def _named_paths(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "weights.base", config.weights.base
    yield "weights.start", config.weights.start
    yield "text.t5_tokenizer", config.text.t5_tokenizer
    yield "text.bert_tokenizer", config.text.bert_tokenizer
    yield "data.directory", config.data.directory
    yield "data.features", config.data.features
