"""The config of a run: frozen dataclasses, and `validate`, which makes them from plain values.

Every field is annotated with its type, its choices (`Literal`) or its range (`Annotated[int, Range(1)]`). `validate`
reads these annotations and reports all wrong fields at once, each with its name, what is allowed and what was given.
"""

import dataclasses
import difflib
import json
import os
import types
import typing
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from calce_jax.config_compat import upgrade_config
from calce_jax.distributed.meshes import MESHES
from calce_jax.errors import UserError

Behaviour = Literal["default", "reference"]
DatasetName = Literal["qvhighlights", "charades_sta", "shapes"]
ModelSize = Literal["full", "full_xxl", "small", "tiny"]
Stage = Literal[1, 2]


class ConfigError(UserError):
    """A field of a config is wrong; the message names every such field."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: int | float
    high: int | float = float("inf")

    def __str__(self):
        return f">= {self.low:g}" if self.high == float("inf") else f"in [{self.low:g}, {self.high:g}]"


PositiveInt = Annotated[int, Range(1)]
UnitInterval = Annotated[float, Range(0, 1)]
NonNegativeFloat = Annotated[float, Range(0)]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, its splits, and the batches made of it."""

    dataset: DatasetName
    directory: str  # what `calce prepare --out` wrote
    train_split: str
    eval_split: str
    frames: Annotated[int, Range(2)]  # of a video
    captions: PositiveInt  # at most so many captions of a video are in a batch
    batch: PositiveInt  # videos in a micro-step, over all devices
    eval_batch: PositiveInt
    workers: Annotated[int, Range(0)]  # reading processes; 0 reads in threads of this one
    augment: bool  # random crops of training clips
    use_captions: bool  # False: no captions in prompts, no speech mask
    group: PositiveInt = 1  # batches whose rows are regrouped by prompt length; 1 keeps batches as they are
    features: str = ""  # what `calce cache_features --out` wrote, read in place of frames; "" reads frames


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Size and precision of the model.

    Fields with a default are newer than the first release; configs without them stay valid.
    """

    size: ModelSize
    frozen_dtype: Literal["float32", "bfloat16"]
    compute_dtype: Literal["float32", "bfloat16"]
    remat: Literal["none", "dots", "full"]
    attention: Literal["xla", "dpa", "flash"] = "xla"  # see `calce_jax.models.attention`
    ln_vision: Literal["trained", "frozen"] = "trained"  # "frozen" makes the Q-Former's output constant


@dataclasses.dataclass(frozen=True)
class KeyframesConfig:
    """Selection of key frames, which keep all their query tokens."""

    mode: Literal["cluster", "information", "interval", "none"]
    clusters: PositiveInt
    dilation: Annotated[int, Range(0)]  # of cluster borders, in frames
    filter_dilation: Annotated[int, Range(0)]  # stage 2: of the frames in stage-1 windows, in frames; stage 1: 0


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA adapters on the linear layers of T5; their output is scaled by alpha / rank."""

    rank: PositiveInt = 8
    alpha: Annotated[float, Range(0)] = 8.0
    dropout: UnitInterval = 0.05


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule, see `calce_jax.training.schedule`."""

    epochs: PositiveInt
    peak: NonNegativeFloat
    floor: NonNegativeFloat
    warmup_from: NonNegativeFloat
    warmup_steps: Annotated[int, Range(0)]  # micro-steps


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    accumulate: PositiveInt  # micro-steps per optimizer step
    beta1: UnitInterval
    beta2: UnitInterval
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Tokenizers, and the compiled lengths."""

    t5_tokenizer: str  # a directory
    bert_tokenizer: str  # a directory
    buckets: tuple[int, ...]  # prompt lengths in tokens, ascending; a batch uses the first that holds it
    text_tokens: PositiveInt  # T5 tokens of all text of a row: query, captions, times
    max_text: PositiveInt  # T5 tokens of the query text with its instruction, and of one caption
    bert_tokens: PositiveInt  # BERT tokens of the query, and of one caption
    windows: PositiveInt  # at most so many stage-1 windows of a query
    answer_tokens: PositiveInt  # T5 tokens of the labels


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Beam search, and the order of the predicted windows."""

    beams: PositiveInt
    window_order: Literal["given", "longest", "score"]


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Initial weights; an empty string stands for none."""

    base: str  # safetensors file with all weights of the model
    start: str  # workdir of another run, whose best checkpoint initialises the trainables (stage 2: that of stage 1)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Logging and evaluation of the training loop."""

    log_every: PositiveInt  # micro-steps
    eval_every: PositiveInt  # epochs
    samples: Annotated[int, Range(0)]  # evaluated queries written as images with frames and windows


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Config of a training run of one stage."""

    stage: Stage
    behaviour: Behaviour  # "reference" reproduces the original exactly, including its mistakes
    seed: Annotated[int, Range(0, 2**32 - 1)]
    mesh: str
    data: DataConfig
    model: ModelConfig
    keyframes: KeyframesConfig
    lora: LoraConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    text: TextConfig
    generation: GenerationConfig
    weights: WeightsConfig
    loop: LoopConfig


ASSETS = "calce_jax/assets/"
WORKDIR = "$WORKDIR/"  # begins a path in config.json that is relative to the folder of that file
MAX_INT = 2**63 - 1  # of a field; numpy and JAX have no greater ones
RESTORE_CONFIG = 'restore it from "config" in checkpoints/STEP/record/metadata beside it'

# Fields that name files or folders: they change where a run is moved, and what counts is the contents.
PATH_FIELDS = (
    "data.directory",
    "data.features",
    "weights.base",
    "weights.start",
    "text.t5_tokenizer",
    "text.bert_tokenizer",
)

# Fields that change neither the results of a run nor its checkpoints: a workdir can be resumed with other values.
IGNORED_ON_RESUME = (
    "mesh",
    "data.directory",
    "data.eval_batch",
    "data.workers",
    "model.remat",
    "model.attention",
    "loop",
    "weights.start",
)


def validate(config: Any) -> RunConfig:
    """Check plain values and return them as a `RunConfig`.

    Args:
      config: nested mappings, such as a `ml_collections.ConfigDict` or parsed JSON; tuples may be lists, floats ints.

    Raises:
      ConfigError: lists each field that is missing, unknown, of the wrong type or out of range, and what is allowed.
    """
    errors: list[str] = []
    run = _parse_dataclass(RunConfig, config, "config", errors)
    if not errors:
        errors += _check_consistency(run)
    if errors:
        noun = "field is" if len(errors) == 1 else "fields are"
        raise ConfigError(f"{len(errors)} {noun} wrong:\n  " + "\n  ".join(errors))
    return run


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the config as nested dicts, for JSON and `ml_collections`."""
    return dataclasses.asdict(config)


def field_names(cls: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the full name of every group of fields ("data") and of every field ("data.frames")."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from field_names(hint, f"{prefix}{name}.")


def diff(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the fields in which two plain configs differ, except `IGNORED_ON_RESUME`, as "seed: 1 there, 2 here".

    Args:
      saved: "there"; fields that it lacks have their defaults.
      current: "here".
    """
    left, right = (_field_defaults() | dict(flatten(values)) for values in (saved, current))
    lines = []
    for name in sorted(left | right):
        saved_value, current_value = (_format_value(values, name) for values in (left, right))
        if saved_value != current_value and not is_ignored_on_resume(name):
            lines.append(f"{name}: {saved_value} there, {current_value} here")
    return lines


def is_ignored_on_resume(name: str) -> bool:
    """Return whether a field ("data.frames"), or the group it is in, is one of `IGNORED_ON_RESUME`."""
    return any(name == ignored or name.startswith(f"{ignored}.") for ignored in IGNORED_ON_RESUME)


def _field_defaults(cls: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return the defaults of the fields that have one, by full name."""
    hints, defaults = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            defaults |= _field_defaults(hints[field.name], f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            defaults[prefix + field.name] = field.default
    return defaults


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (full name, value) of every field of a plain config, such as ("data.frames", 75); tuples become lists."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _check_consistency(run: RunConfig) -> Iterator[str]:
    """Yield an error for each field that contradicts another one."""
    text, keyframes, schedule = run.text, run.keyframes, run.schedule
    if run.mesh not in MESHES:
        yield f"config.mesh: must be one of {', '.join(map(repr, MESHES))}, got {run.mesh!r}"
    if run.data.features and run.data.augment:
        yield (
            f"config.data.augment: must be False with config.data.features={run.data.features}, whose frames are not "
            "cropped, got True (--config.data.augment=False)"
        )
    if run.model.ln_vision == "frozen" and run.behaviour == "reference":
        yield "config.model.ln_vision: must be 'trained' with config.behaviour='reference', got 'frozen'"
    if keyframes.clusters > run.data.frames:
        yield f"config.keyframes.clusters: must be <= config.data.frames={run.data.frames}, got {keyframes.clusters}"
    if schedule.floor > schedule.peak:
        yield f"config.schedule.floor: must be <= config.schedule.peak={schedule.peak}, got {schedule.floor}"
    if not text.buckets or list(text.buckets) != sorted(set(text.buckets)) or text.buckets[0] < 1:
        yield f"config.text.buckets: must be ascending lengths >= 1, got {text.buckets}"
    if run.stage == 2 and keyframes.mode != "cluster":
        yield f"config.keyframes.mode: must be 'cluster' in stage 2, got {keyframes.mode!r}"
    if run.stage == 1 and keyframes.filter_dilation:
        yield f"config.keyframes.filter_dilation: must be 0 in stage 1, got {keyframes.filter_dilation}"


def _parse_dataclass(cls: Any, values: Any, path: str, errors: list[str]) -> Any:
    """Parse one dataclass and append what is wrong to `errors`; the result is incomplete if anything was."""
    if not hasattr(values, "items"):
        errors.append(f"{path}: must be a group of fields, got {values!r}")
        return None
    values = dict(values.items())
    hints = typing.get_type_hints(cls, include_extras=True)
    for unknown in values.keys() - hints.keys():
        close_matches = difflib.get_close_matches(str(unknown), hints, n=1)
        suggestion = f"did you mean {close_matches[0]!r}? " if close_matches else ""
        errors.append(f"{path}.{unknown}: no such field; {suggestion}its fields are {', '.join(hints)}")
    parsed = {}
    optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
    for field, hint in hints.items():
        field_path = f"{path}.{field}"
        if field not in values and field in optional:
            continue
        if field not in values:
            errors.append(f"{field_path}: missing; must be {_describe_type(hint)}")
        elif dataclasses.is_dataclass(hint):
            parsed[field] = _parse_dataclass(hint, values[field], field_path, errors)
        else:
            parsed[field] = _parse_value(hint, values[field], field_path, errors)
    return None if errors else cls(**parsed)


def _parse_value(hint: Any, value: Any, name: str, errors: list[str]) -> Any:
    value_type, bounds = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, None)
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(type(number) is int and abs(number) > MAX_INT for number in numbers):
        errors.append(f"{name}: must fit in 64 bits, got {value!r:.60}")
        return value
    if value_type == tuple[int, ...] and isinstance(value, list | tuple):
        value = tuple(value)
        is_valid = all(type(item) is int for item in value)
    elif typing.get_origin(value_type) is Literal:
        is_valid = any(value == choice and type(value) is type(choice) for choice in typing.get_args(value_type))
    elif value_type is float and type(value) is int:
        value, is_valid = float(value), True
    else:
        is_valid = isinstance(value_type, type) and type(value) is value_type
    if not is_valid or (bounds is not None and not bounds.low <= value <= bounds.high):
        errors.append(f"{name}: must be {_describe_type(hint)}, got {value!r:.100}")
    return value


def _describe_type(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        value_type, bounds = typing.get_args(hint)
        return f"{_describe_type(value_type)} {bounds}"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, types.GenericAlias):
        return "a tuple of ints"
    if dataclasses.is_dataclass(hint):
        return "a group of fields"
    return f"{'an' if hint is int else 'a'} {hint.__name__}"


def _format_value(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "nothing"


def read_config(workdir: str | Path) -> RunConfig:
    """Read the config of the run in a workdir; one that an earlier version wrote is upgraded.

    Raises:
      ConfigError: there is no config.json, it is damaged, or a field is wrong.
    """
    try:
        return validate(read_config_json(workdir))
    except ConfigError as error:
        path = Path(workdir) / "config.json"
        if str(path) in error.reason:
            raise
        raise ConfigError(f"{path}: {error.reason}", RESTORE_CONFIG) from error


def read_config_json(workdir: str | Path) -> dict[str, Any]:
    """Return the plain values of a workdir's config.json under today's names, with "$WORKDIR/" in paths replaced.

    Raises:
      ConfigError: there is no such file, or it is not a JSON object.
    """
    path = Path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", "give the workdir of a run that `calce train` made") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})", RESTORE_CONFIG) from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must be a JSON object, got {type(config).__name__}", RESTORE_CONFIG)
    return upgrade_config(_expand_workdir(config, Path(workdir)))


def _expand_workdir(value: Any, workdir: Path) -> Any:
    if isinstance(value, dict):
        return {name: _expand_workdir(inner, workdir) for name, inner in value.items()}
    if isinstance(value, str) and value.startswith(WORKDIR):
        return os.path.normpath(workdir / value.removeprefix(WORKDIR))
    return value


def packaged_path(path: str) -> Path:
    """Return the path of a file that a config names.

    "calce_jax/assets/..." is a file of the installed package; any other path is relative to the current folder.
    """
    if path.startswith(ASSETS):
        return Path(str(files("calce_jax"))).parent / path
    return Path(path)
