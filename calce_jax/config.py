"""What describes a run: frozen dataclasses, and the check that turns plain values into them.

Every field carries its type, and where they matter its allowed values or its range. `validate` reads those, so that a
wrong value is answered with the field's name and what would be right, all wrong fields at once.
"""

import dataclasses
import difflib
import json
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
        return f"at least {self.low:g}" if self.high == float("inf") else f"from {self.low:g} to {self.high:g}"


PositiveInt = Annotated[int, Range(1)]
UnitInterval = Annotated[float, Range(0, 1)]
NonNegativeFloat = Annotated[float, Range(0)]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which queries about which videos, and how many at a time."""

    dataset: DatasetName
    directory: str  # what `launch/prepare.py --out` wrote
    train_split: str
    eval_split: str
    frames: Annotated[int, Range(2)]  # a video
    captions: PositiveInt  # most captions of a video that enter a batch
    batch: PositiveInt  # videos in a micro-step, over all devices
    eval_batch: PositiveInt
    workers: Annotated[int, Range(0)]  # processes that read; 0 reads in this one
    augment: bool  # crop training clips at random
    use_captions: bool  # False withholds what is said
    group: PositiveInt = (
        1  # batches that are seen together and dealt anew by the length of their prompts; 1 leaves them
    )
    features: str = ""  # what `launch/cache_features.py --out` wrote; read in place of frames, unless empty


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The named size of all towers, the precision they compute in, and what computes attention.

    Fields with a value here came later than the first runs, whose configs lack them.
    """

    size: ModelSize
    frozen_dtype: Literal["float32", "bfloat16"]
    compute_dtype: Literal["float32", "bfloat16"]
    remat: Literal["none", "dots", "full"]
    attention: Literal["xla", "dpa", "flash"] = "xla"  # see `calce_jax.models.attention`
    ln_vision: Literal["trained", "frozen"] = "trained"  # "frozen": so are the Q-Former's words about a frame


@dataclasses.dataclass(frozen=True)
class KeyframesConfig:
    """Which frames keep full detail."""

    mode: Literal["cluster", "information", "interval", "none"]
    clusters: PositiveInt
    dilation: Annotated[int, Range(0)]  # frames by which the borders of clusters are dilated
    filter_dilation: Annotated[int, Range(0)]  # stage 2: frames by which the elected frames are dilated; 0 in stage 1


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """The adapters on T5's linears; their output is scaled by alpha / rank."""

    rank: PositiveInt = 8
    alpha: Annotated[float, Range(0)] = 8.0
    dropout: UnitInterval = 0.05


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate, see `calce_jax.training.schedule`."""

    epochs: PositiveInt
    peak: NonNegativeFloat
    floor: NonNegativeFloat
    warmup_from: NonNegativeFloat
    warmup_steps: Annotated[int, Range(0)]  # micro-steps


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    accumulate: PositiveInt  # micro-steps to one step of the optimizer
    beta1: UnitInterval
    beta2: UnitInterval
    eps: NonNegativeFloat
    weight_decay: NonNegativeFloat


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Tokenizers, and the lengths that are compiled for."""

    t5_tokenizer: str  # a directory
    bert_tokenizer: str  # a directory
    buckets: tuple[int, ...]  # encoder lengths in tokens, ascending; a batch takes the first that holds it
    text_tokens: PositiveInt  # T5 tokens of all the text of a video and its query, all captions included
    max_text: PositiveInt  # T5 tokens of the query with all that stands around it, and of one caption
    bert_tokens: PositiveInt  # BERT tokens of the query, and of one caption
    windows: PositiveInt  # most stage-1 windows of a query
    answer_tokens: PositiveInt  # length of the labels


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """How moments are written and ordered at evaluation."""

    beams: PositiveInt
    window_order: Literal["given", "longest", "score"]


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Where weights come from; an empty string where there is none."""

    base: str  # a safetensors file with all weights of the model
    start: str  # the workdir of another run, whose best trainables are taken (stage 2: that of stage 1)


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """What the loop does besides stepping."""

    log_every: PositiveInt  # micro-steps
    eval_every: PositiveInt  # epochs
    samples: Annotated[int, Range(0)]  # evaluated queries that are shown with their frames and windows


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run of one stage."""

    stage: Stage
    behaviour: Behaviour  # "reference" does exactly as the original, its oversights included
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

# These change neither the numbers of a run nor what its checkpoints hold, so a workdir goes on when they differ.
IGNORED_ON_RESUME = (
    "mesh",
    "data.directory",
    "data.eval_batch",
    "model.remat",
    "model.attention",
    "loop",
    "weights.start",
)


def validate(config: Any) -> RunConfig:
    """Check plain values and return them as a `RunConfig`.

    Args:
      config: nested mappings, such as a `ml_collections.ConfigDict` or parsed JSON (where tuples are lists).

    Raises:
      ConfigError: names each field that is missing, misspelt, of the wrong type or out of range, and what is allowed.
    """
    errors: list[str] = []
    run = _parse_dataclass(RunConfig, config, "config", errors)
    if not errors:
        errors += _check_consistency(run)
    if errors:
        raise ConfigError("the config is wrong in " + f"{len(errors)} place(s):\n  " + "\n  ".join(errors))
    return run


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return nested dicts of the config's values, for JSON and for `ml_collections`."""
    return dataclasses.asdict(config)


def field_names(cls: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Give the full name of every field ("data.frames") and every group of fields ("data")."""
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        yield prefix + name
        if dataclasses.is_dataclass(hint):
            yield from field_names(hint, f"{prefix}{name}.")


def diff(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the fields in which two plain configs differ, but for the harmless ones: "seed: 1 there, 2 here"."""
    left, right = (_field_defaults() | dict(flatten(side)) for side in (saved, current))
    lines = []
    for name in sorted(left | right):
        ignored = any(name == field or name.startswith(field + ".") for field in IGNORED_ON_RESUME)
        a, b = (_format_value(side, name) for side in (left, right))
        if a != b and not ignored:
            lines.append(f"{name}: {a} there, {b} here")
    return lines


def _field_defaults(cls: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return the values of the fields that the configs of earlier runs lack, by full name."""
    hints, defaults = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            defaults |= _field_defaults(hints[field.name], f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            defaults[prefix + field.name] = field.default
    return defaults


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every field of a plain config with its full name ("data.frames"); tuples as lists, as JSON has them."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, list(value) if isinstance(value, tuple) else value


def _check_consistency(run: RunConfig) -> Iterator[str]:
    if run.mesh not in MESHES:
        yield f"config.mesh: {run.mesh!r} is none of {', '.join(MESHES)}"
    if run.data.features and run.data.augment:
        yield (
            f"config.data.augment: True with config.data.features={run.data.features}, which know no crops; "
            "it should be False (--config.data.augment=False)"
        )
    if run.model.ln_vision == "frozen" and run.behaviour == "reference":
        yield "config.model.ln_vision: 'frozen', which config.behaviour='reference' trains; it should be 'trained'"
    if run.keyframes.clusters > run.data.frames:
        yield f"config.keyframes.clusters: {run.keyframes.clusters} exceeds the {run.data.frames} of config.data.frames"
    if run.schedule.floor > run.schedule.peak:
        yield f"config.schedule.floor: {run.schedule.floor} exceeds the {run.schedule.peak} of config.schedule.peak"
    if not run.text.buckets or list(run.text.buckets) != sorted(set(run.text.buckets)) or run.text.buckets[0] < 1:
        yield f"config.text.buckets: {run.text.buckets} should be one or more rising lengths"
    if run.stage == 2 and run.keyframes.mode != "cluster":
        yield f"config.keyframes.mode: {run.keyframes.mode!r} in stage 2, which only knows 'cluster'"
    if run.stage == 1 and run.keyframes.filter_dilation:
        yield f"config.keyframes.filter_dilation: {run.keyframes.filter_dilation} in stage 1, which elects no frames; it should be 0"


def _parse_dataclass(cls: Any, values: Any, path: str, errors: list[str]) -> Any:
    """Read one dataclass, noting what is wrong; the result is of use only where nothing was."""
    if not hasattr(values, "items"):
        errors.append(f"{path}: {values!r} should be a group of fields")
        return None
    values = dict(values.items())
    hints = typing.get_type_hints(cls, include_extras=True)
    for unknown in values.keys() - hints.keys():
        close_matches = difflib.get_close_matches(str(unknown), hints, n=1)
        suggestion = f"did you mean {close_matches[0]!r}? " if close_matches else ""
        errors.append(f"{path}.{unknown}: no such field; {suggestion}there are {', '.join(hints)}")
    parsed = {}
    optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
    for field, hint in hints.items():
        field_path = f"{path}.{field}"
        if field not in values and field in optional:
            continue
        if field not in values:
            errors.append(f"{field_path}: missing; it should be {_describe_type(hint)}")
        elif dataclasses.is_dataclass(hint):
            parsed[field] = _parse_dataclass(hint, values[field], field_path, errors)
        else:
            parsed[field] = _parse_value(hint, values[field], field_path, errors)
    return None if errors else cls(**parsed)


def _parse_value(hint: Any, value: Any, name: str, errors: list[str]) -> Any:
    value_type, bounds = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint, None)
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
        errors.append(f"{name}: {value!r} should be {_describe_type(hint)}")
    return value


def _describe_type(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        value_type, bounds = typing.get_args(hint)
        return f"{_describe_type(value_type)} {bounds}"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, types.GenericAlias):
        return "a tuple of int"
    return "a group of fields" if dataclasses.is_dataclass(hint) else f"a {hint.__name__}"


def _format_value(config: Mapping[str, Any], name: str) -> str:
    return repr(config[name]) if name in config else "nothing"


def read_config(workdir: str | Path) -> RunConfig:
    """Read the config of the run in a workdir; one that an earlier version wrote is brought up to date.

    Raises:
      ConfigError: there is no such file, or it is damaged.
    """
    return validate(read_config_json(workdir))


def read_config_json(workdir: str | Path) -> dict[str, Any]:
    """Return the plain values of a workdir's config.json under today's names.

    Raises:
      ConfigError: there is no such file, or it is not JSON.
    """
    path = Path(workdir) / "config.json"
    try:
        return upgrade_config(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file", "give the workdir of a run that `calce train` made") from error
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ConfigError(f"{path} is not JSON ({error})", "restore it from a checkpoint's record") from error


def packaged_path(path: str) -> Path:
    """Return where a file that a config names lies.

    "calce_jax/assets/..." names a file that comes with the package, wherever that is installed; any other path is as
    given, relative to the current folder.
    """
    if path.startswith(ASSETS):
        return Path(str(files("calce_jax"))).parent / path
    return Path(path)
