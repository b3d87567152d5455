"""Sizes of models from the shapes of recorded weights, and from settings what shapes do not tell."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig

Tensors = Mapping[str, np.ndarray]


def vit(tensors: Tensors, settings: Mapping[str, Any], *, eps: float = 1e-6) -> VitConfig:
    """Return the sizes of a vision transformer whose names start with "visual_encoder."."""
    name = "visual_encoder."
    width, _, patch, _ = tensors[f"{name}patch_embed.proj.weight"].shape
    grid = round((tensors[f"{name}pos_embed"].shape[1] - 1) ** 0.5)
    return VitConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=count_layers(tensors, f"{name}blocks."),
        heads=settings["heads"],
        mlp_width=tensors[f"{name}blocks.0.mlp.fc1.weight"].shape[0],
        eps=eps,
    )


def qformer(tensors: Tensors, settings: Mapping[str, Any], *, vocab: int) -> QFormerConfig:
    """Return the sizes of a Q-Former; one without a visual branch gets 1 query token and an image width of 1."""
    name = "Qformer.bert."
    layer = f"{name}encoder.layer."
    depth = count_layers(tensors, layer)
    cross_layers = [i for i in range(depth) if f"{layer}{i}.crossattention.self.key.weight" in tensors]
    key_kernel = tensors.get(f"{layer}0.crossattention.self.key.weight")
    positions, width = tensors[f"{name}embeddings.position_embeddings.weight"].shape
    return QFormerConfig(
        width=width,
        depth=depth,
        heads=settings["heads"],
        mlp_width=tensors[f"{layer}0.intermediate.dense.weight"].shape[0],
        query_tokens=tensors["query_tokens"].shape[1] if "query_tokens" in tensors else 1,
        image_width=1 if key_kernel is None else key_kernel.shape[1],
        cross_attention_frequency=cross_layers[1] if len(cross_layers) > 1 else depth,
        vocab=vocab,
        max_positions=positions,
    )


def t5(tensors: Tensors, prefix: str = "") -> T5Config:
    """Return the sizes of a T5 whose names start with `prefix`."""
    vocab, width = tensors[f"{prefix}shared.weight"].shape
    attention = f"{prefix}encoder.block.0.layer.0.SelfAttention."
    heads = tensors[f"{attention}relative_attention_bias.weight"].shape[1]
    mlp = f"{prefix}encoder.block.0.layer.1.DenseReluDense."
    return T5Config(
        width=width,
        heads=heads,
        head_width=_linear(tensors, f"{attention}q").shape[0] // heads,
        mlp_width=_linear(tensors, f"{mlp}wi_0").shape[0],
        encoder_depth=count_layers(tensors, f"{prefix}encoder.block."),
        decoder_depth=count_layers(tensors, f"{prefix}decoder.block."),
        vocab=vocab,
    )


def lora(tensors: Tensors, scaling: float = 1.0) -> LoraConfig:
    """Return rank and alpha of the adapters, where `scaling` is alpha / rank.

    Raises:
      ValueError: the adapters have several ranks, or there are none.
    """
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A.default.weight")}
    if len(ranks) != 1:
        raise ValueError(f"adapters must have one rank, got {sorted(ranks)}")
    (rank,) = ranks
    return LoraConfig(rank=rank, alpha=rank * scaling)


# The names of sizes in config.json, and ours.
_VIT_FIELDS = {
    "img": "image_size",
    "patch": "patch_size",
    "dim": "width",
    "depth": "depth",
    "heads": "heads",
    "mlp_hidden": "mlp_width",
}
_QFORMER_FIELDS = {
    "hidden": "width",
    "layers": "depth",
    "heads": "heads",
    "ffn": "mlp_width",
    "queries": "query_tokens",
    "encoder_width": "image_width",
    "cross_attention_freq": "cross_attention_frequency",
    "vocab": "vocab",
    "max_positions": "max_positions",
}
_T5_FIELDS = {
    "d_model": "width",
    "heads": "heads",
    "d_kv": "head_width",
    "d_ff": "mlp_width",
    "enc": "encoder_depth",
    "dec": "decoder_depth",
    "vocab": "vocab",
}
_LORA_FIELDS = {"r": "rank", "rank": "rank", "alpha": "alpha"}


def calce(settings: Mapping[str, Any]) -> CalceConfig:
    """Return the sizes of the whole model from settings alone, where there are no weights to take them from.

    Args:
      settings: by sub-model, "vit", "qformer", "t5" and "lora", sizes under the names of config.json, such as
        `{"vit": {"dim": 1408}}`, or of our configs. Those that are missing are of the published model.

    Raises:
      KeyError: a sub-model has a size that is not known, for then the counts would be of another model.
    """
    full = CalceConfig.full()
    assert full.lora is not None
    vit = _replace(full.vit, settings, "vit", _VIT_FIELDS)
    qformer = _replace(full.qformer, settings, "qformer", _QFORMER_FIELDS)
    if "encoder_width" not in settings.get("qformer", {}):
        qformer = dataclasses.replace(qformer, image_width=vit.width)
    compressed = qformer.query_tokens // 4  # as the original has it
    t5_config = _replace(full.t5, settings, "t5", _T5_FIELDS)
    lora_config = _replace(full.lora, settings, "lora", _LORA_FIELDS)
    return CalceConfig(vit, qformer, t5_config, lora_config, compressed_query_tokens=compressed)


def _replace(config: Any, settings: Mapping[str, Any], part: str, fields: Mapping[str, str]) -> Any:
    given = settings.get(part, {})
    known = {**fields} | {name: name for name in fields.values()}
    if unknown := sorted(set(given) - set(known)):
        raise KeyError(f"config.json: {part} has no size {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return dataclasses.replace(config, **{known[name]: value for name, value in given.items()})


def count_layers(tensors: Tensors, prefix: str) -> int:
    """Return the number of layers, named `prefix`, a number, a dot and more.

    Raises:
      KeyError: there are none.
    """
    numbers = {int(name_match[1]) for name in tensors if (name_match := re.match(rf"{re.escape(prefix)}(\d+)\.", name))}
    if not numbers:
        raise KeyError(f"no weight named {prefix}0...")
    return max(numbers) + 1


def _linear(tensors: Tensors, name: str) -> np.ndarray:
    """Return the kernel of a linear layer, under the name of either peft version."""
    return tensors[f"{name}.weight" if f"{name}.weight" in tensors else f"{name}.base_layer.weight"]
