"""Pretrain the tiny base model and write its checkpoint: `python -m data.shapes.pretrain`.

The demo trains adapters on it, as a full-size run does on BLIP-2 and Flan-T5.
"""

import dataclasses
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

# Before jax is imported: a simulated device for each core, see `data.shapes.pretrain.pretrain`.
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()}")

import jax
import jax.numpy as jnp
from absl import flags, logging
from flax import nnx

from calce_jax.checkpoints.params_file import save_params
from calce_jax.commands.runner import no_arguments, run_main
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.text.tokenizers import load_bert, load_t5
from data.shapes.pretrain.pretrain import PretrainConfig, pretrain_base_model

ASSETS = Path(__file__).parents[3] / "calce_jax" / "assets" / "tiny"

OUT = flags.DEFINE_string("out", str(ASSETS / "pretrained.safetensors"), "output file")
NUM_SCENES = flags.DEFINE_integer("scenes", PretrainConfig.num_scenes, "number of training scenes")
STEPS_SCALE = flags.DEFINE_float("steps", 1.0, "factor of the steps of all stages", lower_bound=0.0)


def main(argv: list[str]) -> None:
    """Pretrain, score on held-out scenes, save in bfloat16."""
    no_arguments(argv)
    logging.set_verbosity(logging.INFO)
    t5, bert = load_t5(ASSETS / "t5"), load_bert(ASSETS / "bert")
    scale: float = STEPS_SCALE.value
    rounds = tuple(
        replace(
            part,
            curriculum=tuple(replace(stage, steps=round(stage.steps * scale)) for stage in part.curriculum),
            vision_steps=round(part.vision_steps * scale),
        )
        for part in PretrainConfig.rounds
    )
    pretrain_config = PretrainConfig(num_scenes=NUM_SCENES.value, rounds=rounds)
    model, scores = pretrain_base_model(CalceConfig.tiny(len(t5), len(bert), lora=None), t5, bert, pretrain_config)
    logging.info("held out: %s", scores)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(model, nnx.Param))
    header = {"pretrain_config": json.dumps(dataclasses.asdict(pretrain_config)), "scores": json.dumps(scores)}
    save_params(Path(OUT.value), params, header)
    logging.info("wrote %s, %.1f MB", OUT.value, Path(OUT.value).stat().st_size / 1e6)


if __name__ == "__main__":
    run_main(main, sys.argv, flags.FLAGS)
