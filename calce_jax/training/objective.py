"""The objective of a run: the step that it takes, and what training by rewards needs from the run it starts from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

from calce_jax.checkpoints.restore import restore_trainables
from calce_jax.checkpoints.workdir import check_other_run
from calce_jax.config import ConfigError, RunConfig
from calce_jax.distributed.param_names import Params
from calce_jax.inference.prediction import StepConfig
from calce_jax.models.answer_parsing import piece_characters
from calce_jax.training.reward_step import make_reward_step
from calce_jax.training.run_data import RunData
from calce_jax.training.train_step import LearningRate, TrainStep, make_train_step


def check_start(config: RunConfig) -> None:
    """Check that training by rewards starts from a trained run.

    Not a part of `calce_jax.config.validate`: the config of a published model names no such run.

    Raises:
      ConfigError: `config.weights.start` is empty.
    """
    if config.objective == "reward" and not config.weights.start:
        raise ConfigError(
            "config.weights.start: must be the workdir of a run of the same stage with config.objective='reward', got "
            "''",
            "train it first (--config.objective=likelihood in another --workdir), then give its workdir",
        )


def make_objective_step(
    config: RunConfig,
    run_data: RunData,
    graph: Any,
    program_config: StepConfig,
    *,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: LearningRate,
) -> TrainStep:
    """Return the training step of a run, to be compiled; the other arguments are those of `make_train_step`."""
    if config.objective == "likelihood":
        return make_train_step(graph, program_config, optimizer, learning_rate)
    characters = piece_characters(run_data.answer_pieces, run_data.model_config.t5.vocab)
    return make_reward_step(
        graph, program_config, optimizer, learning_rate, reward=config.reward, characters=characters
    )


def load_reference(
    config: RunConfig, template: Params, metadata: Mapping[str, Any]
) -> tuple[Params | None, dict[str, str]]:
    """Return the trainables that the KL divergence is to, and metadata that name them; None and {} without that term.

    They are read from `config.weights.start` after an interruption too, so that checkpoints need not hold them.

    Args:
      config: of the run.
      template: trainables of the same shapes, with the shardings to restore into.
      metadata: of the checkpoint that the run goes on from; {} at its start.

    Raises:
      CheckpointError: the other run has no checkpoint, or it cannot be read.
      ConfigError: its best checkpoint is not the one that this run started from.
    """
    if config.objective == "likelihood" or not config.reward.kl:
        return None, {}
    start = Path(config.weights.start)
    check_other_run(start)
    trainable, checkpoint, _ = restore_trainables(start, template)
    recorded = metadata.get("reference", checkpoint.name)
    if checkpoint.name != recorded:
        raise ConfigError(
            f"config.weights.start: the best checkpoint of {start} is {checkpoint.name} now, and was {recorded} when "
            "this run started; its KL divergence is to that one",
            "give a copy of that workdir as it was, or start another run in another --workdir",
        )
    return trainable, {"reference": recorded}
