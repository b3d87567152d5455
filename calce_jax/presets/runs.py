"""Presets by name: "qvhighlights,stage=1", "charades_sta,stage=2,behaviour=reference", "shapes,objective=reward"."""

from dataclasses import replace
from typing import cast

from calce_jax.config import (
    Behaviour,
    ConfigError,
    GenerationConfig,
    LoopConfig,
    Method,
    ModelSize,
    Objective,
    OptimizerConfig,
    RunConfig,
    Stage,
)
from calce_jax.moments.windows import RECOMMENDED_WINDOW_ORDER
from calce_jax.presets.datasets import DATASETS
from calce_jax.presets.mr_blip import as_mr_blip
from calce_jax.presets.sizes import LORA, MESH, SIZES, prompt_buckets

OPTIONS = {
    "stage": ("1", "2"),
    "size": tuple(SIZES),
    "behaviour": ("default", "reference"),
    "method": ("calce", "mr_blip"),
    "objective": ("likelihood", "reward"),
}
# Evaluations without a better score after which training by rewards ends; see `RewardConfig` for its other fields.
REWARD_PATIENCE = 2
SHORT_NAMES = {"qvh": "qvhighlights", "charades": "charades_sta"}


def get_preset(name: str, flag: str = "--config") -> RunConfig:
    """Return the config of a run.

    Args:
      name: a dataset (qvhighlights or qvh, charades_sta or charades, activitynet, shapes), then any of `stage=1|2`,
        `size=full|full_xxl|small|tiny`, `behaviour=default|reference`, `method=calce|mr_blip` and
        `objective=likelihood|reward`, separated by commas.
      flag: that gave the name, for the message.

    Raises:
      ConfigError: a part of the name is unknown, the message lists the allowed ones; or Mr. BLIP is asked for a second
        stage or for the original's behaviour.
    """
    dataset, options = _parse(name, flag)
    stage = cast(Stage, int(options.get("stage", "1")))
    behaviour = cast(Behaviour, options.get("behaviour", "default"))
    objective = cast(Objective, options.get("objective", "likelihood"))
    size = cast(ModelSize, options.get("size", "tiny" if dataset == "shapes" else "full"))
    method = cast(Method, options.get("method", "calce"))
    defaults = DATASETS[dataset](stage, size)
    if method == "mr_blip":
        if stage == 2 or behaviour == "reference":
            raise ConfigError(f"{flag}={name}: method=mr_blip has stage=1 and behaviour=default alone; leave them out")
        defaults = as_mr_blip(dataset, defaults)
    if behaviour == "reference":  # the original does not regroup batches
        defaults = replace(defaults, data=replace(defaults.data, group=1))
    if objective == "reward":
        defaults = defaults.after_training(stage)
    return RunConfig(
        stage=stage,
        behaviour=behaviour,
        seed=42,
        mesh=MESH[size],
        data=defaults.data,
        model=SIZES[size],
        keyframes=defaults.keyframes,
        lora=defaults.lora or LORA[size],
        schedule=defaults.schedule,
        optimizer=OptimizerConfig(accumulate=defaults.accumulate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05),
        text=defaults.text_config(
            prompt_buckets(
                size,
                defaults.data.frames,
                stage,
                text_tokens=defaults.typical_text_tokens,
                num_buckets=defaults.num_buckets,
            )
        ),
        # Of both originals: the best beam, in the order in which it is written.
        generation=GenerationConfig(beams=5, window_order="given")
        if behaviour == "reference" or method == "mr_blip"
        else GenerationConfig(
            beams=5,
            window_order=RECOMMENDED_WINDOW_ORDER,
            window_source="all_beams",
            decision="minimum_bayes_risk",
            saliency=dataset == "qvhighlights",
        ),
        weights=defaults.weights,
        loop=LoopConfig(
            log_every=defaults.log_every, eval_every=1, samples=4, patience=REWARD_PATIENCE * (objective == "reward")
        ),
        objective=objective,
        method=method,
    )


def current_name(name: str) -> str:
    """Return the name of a preset, or of a dataset, as it is now: "qvhighlights,stage=1" for "qvh,stage=1"."""
    dataset, comma, options = name.partition(",")
    return f"{SHORT_NAMES.get(dataset, dataset)}{comma}{options}"


def _parse(name: str, flag: str) -> tuple[str, dict[str, str]]:
    dataset, *rest = current_name(name).split(",")
    if dataset not in DATASETS:
        raise ConfigError(f"{flag}={name}: the dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")
    options = {}
    for option in rest:
        field, _, value = option.partition("=")
        if field not in OPTIONS:
            raise ConfigError(f"{flag}={name}: {option!r} must set one of {', '.join(OPTIONS)}")
        if value not in OPTIONS[field]:
            raise ConfigError(f"{flag}={name}: {field} must be one of {', '.join(OPTIONS[field])}, got {value!r}")
        options[field] = value
    return dataset, options
