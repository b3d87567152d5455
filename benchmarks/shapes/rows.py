"""The rows of the benchmark: what is trained, from what, and how it differs from the preset."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calce_jax.config import RunConfig, to_dict, validate
from calce_jax.presets.runs import get_preset


@dataclass(frozen=True)
class Row:
    """One row.

    Fields:
      name: of its folder, and on the command line.
      title: in the table.
      preset: of `calce train --config`; "" for a row that trains nothing, and predicts with the run it starts from.
      start: the row whose best checkpoint it starts from; "" for the base model.
      changes: fields of the config, by their full names.
      looks: of a prediction, see `calce_jax.inference.look_again`.
    """

    name: str
    title: str
    preset: str = "shapes,stage=1"
    start: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    looks: int = 1

    @property
    def stage(self) -> int:
        """The stage that is trained, or 0."""
        return get_preset(self.preset).stage if self.preset else 0


REHEARSAL_CHANGES: Mapping[str, Any] = {"schedule.epochs": 1}

# What follows stage 1 has as many steps and the same rates, whatever its objective is: those of stage 2.
AFTERWARDS: Mapping[str, Any] = {
    "schedule.epochs": 3,
    "schedule.peak": 1e-3,
    "schedule.floor": 1e-4,
    "schedule.warmup_steps": 10,
}

# Ways of training are compared by their most probable answers.
MOST_PROBABLE: Mapping[str, Any] = {"generation.decision": "most_probable"}
LEAST_RISK: Mapping[str, Any] = {"generation.decision": "minimum_bayes_risk"}
FEW, MANY = ({"data.negatives": share} for share in (0.1, 0.2))
REWARD = "shapes,stage=1,objective=reward"

# Each after the row it starts from.
ROWS = (
    Row("stage1", "stage 1"),
    Row("longer", "stage 1, then more of it", start="stage1", changes=AFTERWARDS),
    Row("reward", "stage 1, then rewards", REWARD, start="stage1", changes=AFTERWARDS),
    Row("reward_risk", "rewards, answers of least risk", "", start="reward", changes=LEAST_RISK),
    Row("negatives", "stage 1, negatives 0.1", changes=FEW),
    Row(
        "negatives_reward",
        "stage 1, then rewards, both with negatives 0.1",
        REWARD,
        start="negatives",
        changes={**AFTERWARDS, **FEW},
    ),
    Row(
        "reward_negatives",
        "stage 1, then rewards with negatives 0.2",
        REWARD,
        start="stage1",
        changes={**AFTERWARDS, **MANY},
    ),
    Row(
        "reward_negatives_risk",
        "rewards with negatives 0.2, answers of least risk",
        "",
        start="reward_negatives",
        changes=LEAST_RISK,
    ),
    Row("stage2", "stage 1, then stage 2", "shapes,stage=2", start="stage1"),
    Row("stage2_risk", "stage 2, answers of least risk", "", start="stage2", changes=LEAST_RISK),
    Row("stage2_again", "stage 2, looked at again", "", start="stage2", changes=LEAST_RISK, looks=2),
    Row("stage2_longer", "stage 2, then more of it", "shapes,stage=2", start="stage2", changes=AFTERWARDS),
    Row("stage2_reward", "stage 2, then rewards", "shapes,stage=2,objective=reward", "stage2", AFTERWARDS),
    Row("reward_stage2", "stage 1, rewards, then stage 2", "shapes,stage=2", start="reward"),
    Row("reward_again", "rewards, looked at again", "", start="reward", changes=LEAST_RISK, looks=2),
    Row("stage2_reward_again", "stage 2, rewards, looked at again", "", "stage2_reward", LEAST_RISK, looks=2),
    Row("reward_few", "stage 1, then rewards with negatives 0.1", REWARD, "stage1", {**AFTERWARDS, **FEW}),
    Row("mix", "stage 1, mix 0.3", changes={"data.mix": 0.3}),
    Row("inverted", "stage 1, inverted 0.2", changes={"data.inverted": 0.2}),
)


def row_config(row: Row, out: Path, seed: int, changes: Mapping[str, Any]) -> RunConfig:
    """Return the config of a row.

    Args:
      row: what is trained.
      out: the folder of the benchmark.
      seed: of the run.
      changes: further fields, for all rows.
    """
    places = {
        "data.directory": str(tables_folder(out, row, seed)),
        "data.features": str(out / "features"),
        "weights.start": str(workdir(out, row.start, seed)) if row.start else "",
        "seed": seed,
    }
    return with_fields(get_preset(row.preset), {**places, **MOST_PROBABLE, **changes, **row.changes})


def with_fields(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Return a config with other values of some fields, by their full names."""
    values = to_dict(config)
    for name, value in changes.items():
        *groups, last = name.split(".")
        part = values
        for group in groups:
            part = part[group]
        part[last] = value
    return validate(values)


def stage1_of(row: Row) -> Row:
    """Return the row of stage 1 that a row goes back to, whose predictions are the windows that stage 2 reads."""
    by_name = {other.name: other for other in ROWS}
    while row.stage != 1:
        row = by_name[row.start]
    return row


def workdir(out: Path, name: str, seed: int) -> Path:
    """Return the workdir of a row, by its name."""
    return out / f"seed{seed}" / name


def tables_folder(out: Path, row: Row, seed: int) -> Path:
    """Return the prepared folder of a row; those of stage 2 have windows of stage 1, other for each seed."""
    return out / "prepared" if row.stage == 1 else out / f"seed{seed}" / f"{row.name}_prepared"


def result_path(out: Path, job: str) -> Path:
    """Return where the result of a job is written: of "NAME:SEED", or of "base"."""
    name, _, seed = job.partition(":")
    return out / f"seed{seed}" / f"{name}.json" if seed else out / f"{name}.json"
