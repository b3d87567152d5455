"""Names of Whisper as `transformers` stores it."""

from collections.abc import Iterator

import numpy as np

from calce_jax.checkpoints.convert.mapping import TRANSPOSE, Operation, Parts, Row, Table


def _frames_to_flax(kernel: np.ndarray) -> Parts:
    return (kernel.transpose(2, 1, 0).reshape(-1, kernel.shape[0]),)


def _frames_to_torch(parts: Parts) -> np.ndarray:
    rows, width = parts[0].shape
    return parts[0].reshape(3, rows // 3, width).transpose(2, 1, 0)


# A convolution (D, C, 3) over time is a product with three frames laid side by side.
FRAMES = Operation(_frames_to_flax, _frames_to_torch)


def _norm(torch: str, ours: str) -> Iterator[Row]:
    yield Row(f"{torch}.weight", f"{ours}/scale")
    yield Row(f"{torch}.bias", f"{ours}/bias")


def _linear(torch: str, ours: str, *, bias: bool = True) -> Iterator[Row]:
    yield Row(f"{torch}.weight", f"{ours}/kernel", TRANSPOSE)
    if bias:
        yield Row(f"{torch}.bias", f"{ours}/bias")


def _attention(torch: str, ours: str) -> Iterator[Row]:
    yield from _linear(f"{torch}.q_proj", f"{ours}/q")
    yield from _linear(f"{torch}.k_proj", f"{ours}/k", bias=False)
    yield from _linear(f"{torch}.v_proj", f"{ours}/v")
    yield from _linear(f"{torch}.out_proj", f"{ours}/o")


def _mlp(torch: str, ours: str) -> Iterator[Row]:
    yield from _norm(f"{torch}.final_layer_norm", f"{ours}/mlp_norm")
    yield from _linear(f"{torch}.fc1", f"{ours}/mlp/wi")
    yield from _linear(f"{torch}.fc2", f"{ours}/mlp/wo")


def _tower(tower: str) -> Iterator[Row]:
    yield Row(f"model.{tower}.embed_positions.weight", f"{tower}/positions")
    yield from _norm(f"model.{tower}.layer_norm", f"{tower}/final_norm")


def _convolution(name: str) -> Iterator[Row]:
    yield Row(f"model.encoder.{name}.weight", f"encoder/{name}/kernel", FRAMES)
    yield Row(f"model.encoder.{name}.bias", f"encoder/{name}/bias")


ENCODER, DECODER = "model.encoder.layers.{layer}", "model.decoder.layers.{layer}"

TABLE: Table = (
    *_convolution("conv1"),
    *_convolution("conv2"),
    *_tower("encoder"),
    *_norm(f"{ENCODER}.self_attn_layer_norm", "encoder/blocks/attention_norm"),
    *_attention(f"{ENCODER}.self_attn", "encoder/blocks/attention"),
    *_mlp(ENCODER, "encoder/blocks"),
    Row("model.decoder.embed_tokens.weight", "decoder/tokens", tied=("proj_out.weight",)),
    *_tower("decoder"),
    *_norm(f"{DECODER}.self_attn_layer_norm", "decoder/blocks/self_norm"),
    *_attention(f"{DECODER}.self_attn", "decoder/blocks/self_attention"),
    *_norm(f"{DECODER}.encoder_attn_layer_norm", "decoder/blocks/cross_norm"),
    *_attention(f"{DECODER}.encoder_attn", "decoder/blocks/cross_attention"),
    *_mlp(DECODER, "decoder/blocks"),
)
