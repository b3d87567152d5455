"""Sizes of models from the shapes of recorded weights; only head counts and epsilons come from settings."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from calce_jax.models.lora import LoraConfig
from calce_jax.models.qformer import QFormerConfig
from calce_jax.models.t5 import T5Config
from calce_jax.models.vit import VitConfig

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
