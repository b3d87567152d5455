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
from calce_jax.models.calce import CalceConfig
from calce_jax.text.tokenizers import load_bert, load_t5
from data.shapes.pretrain.pretrain import PretrainConfig, pretrain_base_model

ASSETS = Path(__file__).parents[3] / "calce_jax" / "assets" / "tiny"

OUT = flags.DEFINE_string("out", str(ASSETS / "base.safetensors"), "output file")
NUM_SCENES = flags.DEFINE_integer("scenes", PretrainConfig.num_scenes, "number of training scenes")
VISION_STEPS = flags.DEFINE_integer("seeing_steps", PretrainConfig.vision_steps, "steps of the vision stage")
TEXT_STEPS_SCALE = flags.DEFINE_float("reading", 1.0, "factor of the steps of the text stage")


def main(argv: list[str]) -> None:
    """Pretrain, score on held-out scenes, save in bfloat16."""
    no_arguments(argv)
    logging.set_verbosity(logging.INFO)
    t5, bert = load_t5(ASSETS / "t5"), load_bert(ASSETS / "bert")
    pretrain_config = PretrainConfig(
        num_scenes=NUM_SCENES.value,
        vision_steps=VISION_STEPS.value,
        curriculum=tuple(
            replace(stage, steps=round(stage.steps * TEXT_STEPS_SCALE.value)) for stage in PretrainConfig.curriculum
        ),
    )
    model, scores = pretrain_base_model(CalceConfig.tiny(len(t5), len(bert), lora=None), t5, bert, pretrain_config)
    logging.info("held out: %s", scores)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), nnx.state(model, nnx.Param))
    header = {"pretrain_config": json.dumps(dataclasses.asdict(pretrain_config)), "scores": json.dumps(scores)}
    save_params(Path(OUT.value), params, header)
    logging.info("wrote %s, %.1f MB", OUT.value, Path(OUT.value).stat().st_size / 1e6)


if __name__ == "__main__":
    run_main(main, sys.argv, flags.FLAGS)
