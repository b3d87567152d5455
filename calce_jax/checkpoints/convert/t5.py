"""Names of Flan-T5, with and without LoRA."""

from collections.abc import Iterator
from typing import Literal

from calce_jax.checkpoints.convert.mapping import TRANSPOSE, Ignored, Row, Table

Peft = Literal["0.5", "0.9"]
TOWERS = ("encoder", "decoder")


def table(*, lora: bool, peft: Peft = "0.5") -> Table:
    """Return the rows of T5.

    Args:
      lora: whether every linear layer has an adapter. Names then are peft's, without its prefix.
      peft: whose spelling of a frozen matrix under an adapter to write, `X.weight` (0.5) or `X.base_layer.weight`
        (0.9); both are read.
    """

    def linear(torch: str, ours: str) -> Iterator[Row]:
        if not lora:
            yield Row(f"{torch}.weight", f"{ours}/kernel", TRANSPOSE)
            return
        spellings = (f"{torch}.weight", f"{torch}.base_layer.weight")
        written, other = spellings if peft == "0.5" else spellings[::-1]
        yield Row(written, f"{ours}/base/kernel", TRANSPOSE, also=(other,))
        yield Row(f"{torch}.lora_A.default.weight", f"{ours}/a", TRANSPOSE)
        yield Row(f"{torch}.lora_B.default.weight", f"{ours}/b", TRANSPOSE)

    def attention(torch: str, ours: str) -> Iterator[Row]:
        for name in "qkvo":
            yield from linear(f"{torch}.{name}", f"{ours}/{name}")

    def mlp(torch: str, ours: str) -> Iterator[Row]:
        for name in ("wi_0", "wi_1", "wo"):
            yield from linear(f"{torch}.{name}", f"{ours}/{name}")

    def stack(tower: str) -> Iterator[Row]:
        # Only the first layer holds the table of relative positions; all layers use it.
        relative = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        yield Row(relative, f"{tower}/relative_bias/embedding")
        yield Row(f"{tower}.final_layer_norm.weight", f"{tower}/final_norm/scale")

    def norm(torch: str, ours: str) -> Row:
        return Row(f"{torch}.layer_norm.weight", f"{ours}_norm/scale")

    encoder, decoder = ("encoder.block.{layer}.layer", "decoder.block.{layer}.layer")
    return (
        Row("shared.weight", "shared/embedding", tied=tuple(f"{tower}.embed_tokens.weight" for tower in TOWERS)),
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
        Ignored(
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
            "old files have it, but attention to the encoder knows no distances",
        ),
    )
