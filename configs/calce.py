"""The runs: `--config=configs/calce.py:qvh,stage=1`.

The argument is a dataset (qvh, charades or shapes), then any of `stage=1|2`, `size=full|full_xxl|small|tiny` and
`behaviour=default|reference`. Any field can be changed after that: `--config.schedule.epochs=20`.
`calce_jax.config` says what each field means and what it may be.
"""

from dataclasses import replace
from typing import cast

from ml_collections import ConfigDict

from calce_jax.config import ConfigError, GenerationConfig, LoopConfig, OptimizerConfig, RunConfig, Size, plain
from calce_jax.moments.windows import BEST_SUPPORTED_RANK
from calce_jax.presets.datasets import DATASETS
from calce_jax.presets.sizes import LORA, MESH, SIZES, buckets

CHOICES = {"stage": ("1", "2"), "size": tuple(SIZES), "behaviour": ("default", "reference")}


def get_config(argument: str = "") -> ConfigDict:
    """Return the config of a run, as plain values.

    Raises:
      ConfigError: the argument names something that is not there; the message lists what is.
    """
    dataset, options = _parse(argument)
    stage, behaviour = int(options.get("stage", "1")), options.get("behaviour", "default")
    size = cast(Size, options.get("size", "tiny" if dataset == "shapes" else "full"))
    part = DATASETS[dataset](stage, size)
    if behaviour == "reference":
        part = replace(part, data=replace(part.data, group=1))  # the original's order
    run = RunConfig(
        stage=stage,  # pyright: ignore[reportArgumentType]
        behaviour=behaviour,  # pyright: ignore[reportArgumentType]
        seed=42,
        mesh=MESH[size],
        data=part.data,
        model=SIZES[size],
        keyframes=part.keyframes,
        lora=LORA[size],
        schedule=part.schedule,
        optimizer=OptimizerConfig(accumulate=part.accumulate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05),
        text=part.text(buckets(size, part.data.frames, stage, text=part.prompt_text, lengths=part.prompt_lengths)),
        generation=GenerationConfig(beams=5, rank="given" if behaviour == "reference" else BEST_SUPPORTED_RANK),
        weights=part.weights,
        loop=LoopConfig(log_every=part.log_every, eval_every=1, samples=4),
    )
    return ConfigDict(plain(run)).lock()


def _parse(argument: str) -> tuple[str, dict[str, str]]:
    dataset, *rest = argument.split(",")
    if dataset not in DATASETS:
        raise ConfigError(f"--config=configs/calce.py:{argument}: {dataset!r} is none of {', '.join(DATASETS)}")
    options = {}
    for option in rest:
        name, _, value = option.partition("=")
        if name not in CHOICES:
            raise ConfigError(f"--config=configs/calce.py:{argument}: {option!r} sets none of {', '.join(CHOICES)}")
        if value not in CHOICES[name]:
            raise ConfigError(
                f"--config=configs/calce.py:{argument}: {name}={value} should be one of {', '.join(CHOICES[name])}"
            )
        options[name] = value
    return dataset, options
