"""Mapping of Flan-T5, with and without LoRA."""

from collections.abc import Iterator
from typing import Literal

from calce_jax.checkpoints.convert.mapping import TRANSPOSE, IgnoredKey, KeyMapping, MappingRow

PeftVersion = Literal["0.5", "0.9"]
TOWERS = ("encoder", "decoder")


def key_mapping(*, lora: bool, peft_version: PeftVersion = "0.5") -> KeyMapping:
    """Return the rows of T5.

    Args:
      lora: whether every linear layer has an adapter; PyTorch names are then peft's, without its prefix.
      peft_version: whose name of an adapted layer's frozen kernel to write, `X.weight` (0.5) or `X.base_layer.weight`
        (0.9); both are read.
    """

    def linear(torch_name: str, flax_name: str) -> Iterator[MappingRow]:
        if not lora:
            yield MappingRow(f"{torch_name}.weight", f"{flax_name}/kernel", TRANSPOSE)
            return
        spellings = (f"{torch_name}.weight", f"{torch_name}.base_layer.weight")
        primary, alias = spellings if peft_version == "0.5" else spellings[::-1]
        yield MappingRow(primary, f"{flax_name}/base/kernel", TRANSPOSE, aliases=(alias,))
        yield MappingRow(f"{torch_name}.lora_A.default.weight", f"{flax_name}/a", TRANSPOSE)
        yield MappingRow(f"{torch_name}.lora_B.default.weight", f"{flax_name}/b", TRANSPOSE)

    def attention(torch_name: str, flax_name: str) -> Iterator[MappingRow]:
        for name in "qkvo":
            yield from linear(f"{torch_name}.{name}", f"{flax_name}/{name}")

    def mlp(torch_name: str, flax_name: str) -> Iterator[MappingRow]:
        for name in ("wi_0", "wi_1", "wo"):
            yield from linear(f"{torch_name}.{name}", f"{flax_name}/{name}")

    def stack(tower: str) -> Iterator[MappingRow]:
        # Only the first layer has the relative position bias; all layers share it.
        relative = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield MappingRow(relative, f"{tower}/relative_bias/embedding")
        yield MappingRow(f"{tower}.final_layer_norm.weight", f"{tower}/final_norm/scale")

    def norm(torch_name: str, flax_name: str) -> MappingRow:
        return MappingRow(f"{torch_name}.layer_norm.weight", f"{flax_name}_norm/scale")

    encoder, decoder = ("encoder.block.{layer}.layer", "decoder.block.{layer}.layer")
    return (
        MappingRow("shared.weight", "shared/embedding", tied=tuple(f"{tower}.embed_tokens.weight" for tower in TOWERS)),
        *stack("encoder"),
        norm(f"{encoder}.0", "encoder/blocks/attention"),
        *attention(f"{encoder}.0.SelfAttention", "encoder/blocks/attention"),
        norm(f"{encoder}.1", "encoder/blocks/mlp"),
        *mlp(f"{encoder}.1.DenseReluDense", "encoder/blocks/mlp"),
        *stack("decoder"),
        norm(f"{decoder}.0", "decoder/blocks/self"),
        *attention(f"{decoder}.0.SelfAttention", "decoder/blocks/self_attention"),
        norm(f"{decoder}.1", "decoder/blocks/cross"),
        *attention(f"{decoder}.1.EncDecAttention", "decoder/blocks/cross_attention"),
        norm(f"{decoder}.2", "decoder/blocks/mlp"),
        *mlp(f"{decoder}.2.DenseReluDense", "decoder/blocks/mlp"),
        *linear("lm_head", "lm_head"),
        IgnoredKey(
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
            "in old files; cross-attention has no relative position bias",
        ),
    )
