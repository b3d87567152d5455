"""The tiny model that comes with the package."""

from importlib.resources import files
from pathlib import Path

from calce_jax.config import RunConfig, validate
from configs.calce import get_config


def tiny_config(stage: int) -> RunConfig:
    """Return the config of the tiny model that comes with the package, its files wherever they are installed."""
    here = Path(str(files("data")))
    config = get_config(f"shapes,stage={stage}")
    config.update(
        {
            "mesh": "single",
            "weights": {"base": str(here / "shapes" / "base.safetensors"), "start": ""},
            "text": {name: str(here / "tokenizers" / f"tiny_{name.split('_')[0]}") for name in _TOKENIZERS},
        }
    )
    return validate(config)


_TOKENIZERS = ("t5_tokenizer", "bert_tokenizer")
