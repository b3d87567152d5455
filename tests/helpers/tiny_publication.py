"""The tiny model in the layouts in which BLIP-2, BERT, Flan-T5's tokenizer and CALCE's checkpoints are published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import BertTokenizer, T5Tokenizer

from calce_jax.checkpoints.convert import bert
from calce_jax.checkpoints.convert.calce_pth import write_checkpoint
from calce_jax.checkpoints.convert.convert import model_config_of
from calce_jax.checkpoints.convert.huggingface import write_blip2
from calce_jax.checkpoints.convert.mapping import mapping_rows
from calce_jax.checkpoints.convert.sources import open_sources
from calce_jax.checkpoints.convert.state_dict import lazy_state_dict
from calce_jax.checkpoints.convert.weights import Weights, as_lazy, trainable_param_shapes
from calce_jax.checkpoints.convert.writer import write_safetensors
from calce_jax.config import LoraConfig, packaged_path
from calce_jax.datasets.sources import DriveFile, PublishedModel
from calce_jax.presets.datasets import TINY_BASE
from calce_jax.presets.tiny import tiny_config
from tests.helpers.published_server import FakeServer


def trained_weights(stage: int, lora: LoraConfig | None = None) -> Weights:
    """Return the packaged base weights with adapters that change little: random, and the same in every call.

    Args:
      stage: 1 or 2.
      lora: of the adapters, by default those of the packaged model.
    """
    run = replace(tiny_config(1), **({} if lora is None else {"lora": lora}))
    sizes = model_config_of(run)
    base = open_sources([("base", packaged_path(TINY_BASE))], sizes, seed=run.seed)
    rng = np.random.default_rng(stage)
    adapters = {
        name: as_lazy((0.02 * rng.normal(size=leaf.shape)).astype(np.float32))
        for name, leaf in trainable_param_shapes(sizes).items()
        if name.endswith(("/a", "/b"))
    }
    return replace(base, trained=adapters)


def publish(folder: Path, lora: LoraConfig | None = None) -> dict[str, dict[str, bytes]]:
    """Return the files of each publication, {"blip2": {file: content}, "t5", "bert", "calce"}; `folder` is for work."""
    weights = trained_weights(1, lora)
    write_blip2(folder / "blip2", replace(weights, trained={}))
    rows = mapping_rows(bert.key_mapping())
    params = {param for row in rows for param in row.param_names}
    words = lazy_state_dict(rows, {name: leaf for name, leaf in weights.base.items() if name in params}, tied=False)
    write_safetensors(folder / "bert/model.safetensors", words)
    (folder / "bert/config.json").write_text("{}")
    config = tiny_config(1)
    T5Tokenizer.from_pretrained(str(packaged_path(config.text.t5_tokenizer))).save_pretrained(folder / "t5")
    tokenizer = packaged_path(config.text.bert_tokenizer)
    BertTokenizer.from_pretrained(str(tokenizer)).save_pretrained(folder / "bert")
    (folder / "bert/vocab.txt").write_bytes((tokenizer / "vocab.txt").read_bytes())
    for stage in (1, 2):
        write_checkpoint(folder / "calce" / f"stage{stage}.pth", trained_weights(stage, lora))
    return {name: _contents(folder / name) for name in ("blip2", "bert", "t5", "calce")}


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def serve(served: FakeServer, model: PublishedModel, files: dict[str, dict[str, bytes]]) -> None:
    """Put the files where the parts of a model are published."""
    served.repos["Salesforce/blip2-flan-t5-xl"] = files["blip2"] | {"pytorch_model.bin": b"not wanted"}
    served.repos["google/flan-t5-xl"] = dict(files["t5"])
    served.repos["google-bert/bert-base-uncased"] = dict(files["bert"])
    for part in model.downloads["calce"].parts:
        assert isinstance(part, DriveFile)
        served.drive[part.id] = ("checkpoint_best.pth", files["calce"][str(part.name)])
