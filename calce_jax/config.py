"""The config of a run: frozen dataclasses, and `validate`, which makes them from plain values.

Every field is annotated with its type, its choices or its range, and its meaning, see `calce_jax.config_fields`.
`validate` reports all wrong fields at once, each with its name, what is allowed and what was given; `describe` returns
the annotations.
"""

import dataclasses
import json
import os
import typing
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from calce_jax.config_compat import upgrade_config
from calce_jax.config_fields import Choices, Range, describe_type, parse_dataclass, split_hint
from calce_jax.distributed.meshes import MESHES
from calce_jax.errors import UserError

AttentionImplementation = Literal["xla", "dpa", "flash"]
Behaviour = Literal["default", "reference"]
DatasetName = Literal["qvhighlights", "charades_sta", "activitynet", "shapes"]
KeyframeMode = Literal["cluster", "information", "interval", "none", "all"]
Method = Literal["calce", "mr_blip"]
ModelSize = Literal["full", "full_xxl", "small", "tiny"]
Stage = Literal[1, 2]
Objective = Literal["likelihood", "reward"]
RematPolicy = Literal["none", "dots", "full"]


class ConfigError(UserError):
    """A field of a config is wrong; the message names every such field."""


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
UnitInterval = Annotated[float, Range(0, 1)]
HalfInterval = Annotated[float, Range(0, 0.5)]
NonNegativeFloat = Annotated[float, Range(0)]
FloatDtype = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data set, its splits, and the batches made of it."""

    dataset: Annotated[DatasetName, "format of the annotations"]
    directory: Annotated[str, "what `calce prepare --out` wrote"]
    train_split: Annotated[str, "split that is trained on"]
    eval_split: Annotated[str, "split that is evaluated while training"]
    frames: Annotated[int, Range(2), "key frames of a video"]
    captions: Annotated[PositiveInt, "captions of a video that are compared with the query at once: a block"]
    batch: Annotated[PositiveInt, "videos in a micro-step, over all devices"]
    eval_batch: Annotated[PositiveInt, "videos in a step of the evaluation, over all devices"]
    workers: Annotated[NonNegativeInt, "reading processes; 0 reads in threads of this one"]
    augment: Annotated[bool, "random crops of training clips"]
    use_captions: Annotated[bool, "False: no captions in prompts, no speech mask"]
    group: Annotated[PositiveInt, "batches whose rows are regrouped by prompt length; 1 keeps batches as they are"] = 1
    features: Annotated[str, "what `calce cache_features --out` wrote, read in place of frames; empty reads frames"] = (
        ""
    )
    caption_blocks: Annotated[PositiveInt, "at most so many blocks of captions of a video"] = 8
    window_grid: Annotated[PositiveInt, "seconds; annotated windows begin and end at its multiples"] = 1
    negatives: Annotated[HalfInterval, "share of training rows with a query of another video; the answer is []"] = 0.0
    inverted: Annotated[HalfInterval, "share of training rows that ask for the query, given the windows"] = 0.0
    mix: Annotated[UnitInterval, "share of training rows with frames of another video outside the windows"] = 0.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Size and precision of the model.

    Fields with a default are newer than the first release; configs without them stay valid.
    """

    size: Annotated[ModelSize, "widths and depths of all parts"]
    frozen_dtype: Annotated[FloatDtype, "of the frozen weights"]
    compute_dtype: Annotated[FloatDtype, "of activations"]
    remat: Annotated[RematPolicy, "what the backward pass computes again: nothing, all but matrix products, everything"]
    attention: Annotated[AttentionImplementation, "implementation, see calce_jax/models/attention.py"] = "xla"
    ln_vision: Annotated[
        Literal["trained", "frozen"], "layer norm after the ViT; frozen makes the Q-Former's output constant"
    ] = "trained"


@dataclasses.dataclass(frozen=True)
class KeyframesConfig:
    """Selection of key frames, which keep all their query tokens."""

    mode: Annotated[KeyframeMode, "how key frames are selected"]
    clusters: Annotated[PositiveInt, "clusters of the frames of a video"]
    dilation: Annotated[NonNegativeInt, "of cluster borders, in frames"]
    filter_dilation: Annotated[NonNegativeInt, "stage 2: of the frames in stage-1 windows, in frames; stage 1: 0"]


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """LoRA adapters on the linear layers of T5; their output is scaled by alpha / rank."""

    rank: Annotated[PositiveInt, "of the adapters"] = 8
    alpha: Annotated[NonNegativeFloat, "numerator of the scale"] = 8.0
    dropout: Annotated[UnitInterval, "probability of dropping an input of an adapter"] = 0.05


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning-rate schedule, see `calce_jax.training.schedule`."""

    epochs: Annotated[PositiveInt, "passes over the training split"]
    peak: Annotated[NonNegativeFloat, "learning rate after the warm-up"]
    floor: Annotated[NonNegativeFloat, "learning rate towards the end"]
    warmup_from: Annotated[NonNegativeFloat, "learning rate at the beginning"]
    warmup_steps: Annotated[NonNegativeInt, "length of the warm-up, micro-steps"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    accumulate: Annotated[PositiveInt, "micro-steps per optimizer step"]
    beta1: Annotated[UnitInterval, "decay of the mean of gradients"]
    beta2: Annotated[UnitInterval, "decay of the mean of squared gradients"]
    eps: Annotated[NonNegativeFloat, "added to the denominator"]
    weight_decay: Annotated[NonNegativeFloat, "times the learning rate"]


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Tokenizers, and the compiled lengths."""

    t5_tokenizer: Annotated[str, "a directory"]
    bert_tokenizer: Annotated[str, "a directory"]
    buckets: Annotated[tuple[int, ...], "prompt lengths in tokens, ascending; a batch uses the first that holds it"]
    text_tokens: Annotated[
        PositiveInt, "T5 tokens of all text of a row: query, captions, times; so many for each block of captions"
    ]
    max_text: Annotated[PositiveInt, "T5 tokens of the query text with its instruction, and of one caption"]
    bert_tokens: Annotated[PositiveInt, "BERT tokens of the query, and of one caption"]
    windows: Annotated[PositiveInt, "at most so many stage-1 windows of a query"]
    answer_tokens: Annotated[PositiveInt, "T5 tokens of the labels"]


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Beam search, and the predicted windows.

    Fields with a default are newer than the first release; configs without them stay valid.
    """

    beams: Annotated[PositiveInt, "width of the beam search"]
    window_order: Annotated[Literal["given", "longest", "score"], "of the windows of an answer, see docs/ranking.md"]
    window_source: Annotated[
        Literal["best_beam", "all_beams"],
        "windows in a prediction: of the answer, or also, after them, of the other beams; reference has best_beam",
    ] = "best_beam"
    decision: Annotated[
        Literal["most_probable", "minimum_bayes_risk"],
        "answer of the beams that is given, see docs/ranking.md; reference has most_probable",
    ] = "most_probable"
    constrain: Annotated[
        bool, "exclude answers that are no windows of the video, on data.window_grid; reference excludes nothing"
    ] = False
    saliency: Annotated[
        bool, "predictions have a saliency of every two seconds, for QVHighlights' highlight metrics"
    ] = False


@dataclasses.dataclass(frozen=True)
class WeightsConfig:
    """Initial weights; an empty string stands for none."""

    base: Annotated[str, "safetensors file with all weights of the model"]
    start: Annotated[
        str, "workdir of another run, whose best checkpoint initialises the trainables (stage 2: that of stage 1)"
    ]


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Logging and evaluation of the training loop."""

    log_every: Annotated[PositiveInt, "micro-steps between two logged losses"]
    eval_every: Annotated[PositiveInt, "epochs between two evaluations"]
    samples: Annotated[NonNegativeInt, "evaluated queries written as images with frames and windows"]
    patience: Annotated[NonNegativeInt, "evaluations in a row without a better R1_avg that end the run; 0: none do"] = 0


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Training by rewards, see `calce_jax.training.reward_step`; read with objective=reward alone."""

    rollouts: Annotated[PositiveInt, "answers that are sampled for each query, beside the true one"] = 8
    temperature: Annotated[float, Range(0.01, 100), "divides the logits of sampled answers"] = 1.0
    kl: Annotated[NonNegativeFloat, "weight of the KL divergence from the run in weights.start; 0 does not load it"] = (
        0.0
    )
    cross_entropy: Annotated[NonNegativeFloat, "weight of the cross-entropy of the true answer"] = 0.1


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Config of a training run of one stage."""

    stage: Annotated[Stage, "1 finds windows in the whole video, 2 looks closer at the frames in them"]
    behaviour: Annotated[Behaviour, "reference reproduces the original exactly, including its mistakes"]
    seed: Annotated[int, Range(0, 2**32 - 1), "of new weights, dropout and the order of training"]
    mesh: Annotated[str, Choices(tuple(MESHES)), "how devices share parameters and batches"]
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
    method: Annotated[Method, "mr_blip has one stage: every frame in full, no captions, no items"] = "calce"
    # Newer than the first release; configs without them stay valid.
    objective: Annotated[Objective, "reward trains on, from weights.start, by the overlap of sampled windows"] = (
        "likelihood"
    )
    reward: RewardConfig = RewardConfig()


ASSETS = "calce_jax/assets/"
WORKDIR = "$WORKDIR/"  # begins a path in config.json that is relative to the folder of that file
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

# Fields of `DataConfig`: shares of training rows that are changed, see `calce_jax.input_pipeline.row_variants`.
CHANGED_ROWS = ("negatives", "inverted", "mix")

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
    run = parse_dataclass(RunConfig, config, "config", errors)
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


class FieldDescription(NamedTuple):
    """A field of a config: its full name ("data.frames"), its value, what it means, and what is allowed."""

    name: str
    value: Any
    meaning: str
    allowed: str


class GroupDescription(NamedTuple):
    """A group of fields ("data"; "" for those of no group), and what it is."""

    name: str
    meaning: str
    fields: list[FieldDescription]


def describe(config: RunConfig) -> list[GroupDescription]:
    """Return every field of a config, with the texts of its annotations, by group."""
    groups = {"": config} | {name: group for name, group in vars(config).items() if dataclasses.is_dataclass(group)}
    return [
        GroupDescription(
            group,
            (type(values).__doc__ or "").splitlines()[0],
            [
                FieldDescription(
                    f"{group}.{name}".lstrip("."), getattr(values, name), split_hint(hint)[2], describe_type(hint)
                )
                for name, hint in typing.get_type_hints(type(values), include_extras=True).items()
                if not dataclasses.is_dataclass(hint)
            ],
        )
        for group, values in groups.items()
    ]


def diff(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """List the fields in which two plain configs differ, except `IGNORED_ON_RESUME`, as "seed: 1 there, 2 here".

    Args:
      saved: "there"; fields that it lacks have their defaults.
      current: "here".
    """
    left, right = (field_defaults() | dict(flatten(values)) for values in (saved, current))
    lines = []
    for name in sorted(left | right):
        saved_value, current_value = (_format_value(values, name) for values in (left, right))
        if saved_value != current_value and not is_ignored_on_resume(name):
            lines.append(f"{name}: {saved_value} there, {current_value} here")
    return lines


def is_ignored_on_resume(name: str) -> bool:
    """Return whether a field ("data.frames"), or the group it is in, is one of `IGNORED_ON_RESUME`."""
    return any(name == ignored or name.startswith(f"{ignored}.") for ignored in IGNORED_ON_RESUME)


def field_defaults(cls: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return the defaults of the fields that have one, by full name."""
    hints, defaults = typing.get_type_hints(cls), {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            defaults |= field_defaults(hints[field.name], f"{prefix}{field.name}.")
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
    if run.data.features and run.data.augment:
        yield (
            f"config.data.augment: must be False with config.data.features={run.data.features}, whose frames are not "
            "cropped, got True (--config.data.augment=False)"
        )
    if run.model.ln_vision == "frozen" and run.behaviour == "reference":
        yield "config.model.ln_vision: must be 'trained' with config.behaviour='reference', got 'frozen'"
    for name in CHANGED_ROWS:
        if getattr(run.data, name) and run.behaviour == "reference":
            yield f"config.data.{name}: must be 0 with config.behaviour='reference', got {getattr(run.data, name)}"
    if keyframes.clusters > run.data.frames:
        yield f"config.keyframes.clusters: must be <= config.data.frames={run.data.frames}, got {keyframes.clusters}"
    if schedule.floor > schedule.peak:
        yield f"config.schedule.floor: must be <= config.schedule.peak={schedule.peak}, got {schedule.floor}"
    if not text.buckets or list(text.buckets) != sorted(set(text.buckets)) or text.buckets[0] < 1:
        yield f"config.text.buckets: must be ascending lengths >= 1, got {text.buckets}"
    if run.objective == "reward" and run.behaviour == "reference":
        yield (
            "config.objective: must be 'likelihood' with config.behaviour='reference', whose answers are not whole "
            "seconds, got 'reward'"
        )
    if run.stage == 2 and keyframes.mode != "cluster":
        yield f"config.keyframes.mode: must be 'cluster' in stage 2, got {keyframes.mode!r}"
    if run.stage == 1 and keyframes.filter_dilation:
        yield f"config.keyframes.filter_dilation: must be 0 in stage 1, got {keyframes.filter_dilation}"
    if run.method == "mr_blip":
        yield from _check_mr_blip(run)


def _check_mr_blip(run: RunConfig) -> Iterator[str]:
    """Yield an error for each field that is not of Mr. BLIP."""
    wanted = {"stage": 1, "behaviour": "default", "data.use_captions": False, "keyframes.mode": "all"}
    values = dict(flatten(to_dict(run)))
    for name, value in wanted.items():
        if values[name] != value:
            yield f"config.{name}: must be {value!r} with config.method='mr_blip', got {values[name]!r}"


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
