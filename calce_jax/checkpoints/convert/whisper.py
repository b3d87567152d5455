"""Mapping of transformers' Whisper."""

from collections.abc import Iterator

import numpy as np

from calce_jax.checkpoints.convert.mapping import TRANSPOSE, KeyMapping, MappingRow, ParamArrays, TensorTransform


def _conv1d_to_flax(kernel: np.ndarray) -> ParamArrays:
    return (kernel.transpose(2, 1, 0).reshape(-1, kernel.shape[0]),)


def _conv1d_to_torch(arrays: ParamArrays) -> np.ndarray:
    rows, width = arrays[0].shape
    return arrays[0].reshape(3, rows // 3, width).transpose(2, 1, 0)


# The convolution (D, C, 3) over time as a matrix product with three concatenated frames.
CONV1D = TensorTransform(_conv1d_to_flax, _conv1d_to_torch)


def _norm(torch_name: str, flax_name: str) -> Iterator[MappingRow]:
    yield MappingRow(f"{torch_name}.weight", f"{flax_name}/scale")
    yield MappingRow(f"{torch_name}.bias", f"{flax_name}/bias")


def _linear(torch_name: str, flax_name: str, *, bias: bool = True) -> Iterator[MappingRow]:
    yield MappingRow(f"{torch_name}.weight", f"{flax_name}/kernel", TRANSPOSE)
    if bias:
        yield MappingRow(f"{torch_name}.bias", f"{flax_name}/bias")


def _attention(torch_name: str, flax_name: str) -> Iterator[MappingRow]:
    yield from _linear(f"{torch_name}.q_proj", f"{flax_name}/q")
    yield from _linear(f"{torch_name}.k_proj", f"{flax_name}/k", bias=False)
    yield from _linear(f"{torch_name}.v_proj", f"{flax_name}/v")
    yield from _linear(f"{torch_name}.out_proj", f"{flax_name}/o")


def _mlp(torch_name: str, flax_name: str) -> Iterator[MappingRow]:
    yield from _norm(f"{torch_name}.final_layer_norm", f"{flax_name}/mlp_norm")
    yield from _linear(f"{torch_name}.fc1", f"{flax_name}/mlp/wi")
    yield from _linear(f"{torch_name}.fc2", f"{flax_name}/mlp/wo")


def _tower(tower: str) -> Iterator[MappingRow]:
    yield MappingRow(f"model.{tower}.embed_positions.weight", f"{tower}/positions")
    yield from _norm(f"model.{tower}.layer_norm", f"{tower}/final_norm")


def _convolution(name: str) -> Iterator[MappingRow]:
    yield MappingRow(f"model.encoder.{name}.weight", f"encoder/{name}/kernel", CONV1D)
    yield MappingRow(f"model.encoder.{name}.bias", f"encoder/{name}/bias")


ENCODER, DECODER = "model.encoder.layers.{layer}", "model.decoder.layers.{layer}"

KEY_MAPPING: KeyMapping = (
    *_convolution("conv1"),
    *_convolution("conv2"),
    *_tower("encoder"),
    *_norm(f"{ENCODER}.self_attn_layer_norm", "encoder/blocks/attention_norm"),
    *_attention(f"{ENCODER}.self_attn", "encoder/blocks/attention"),
    *_mlp(ENCODER, "encoder/blocks"),
    MappingRow("model.decoder.embed_tokens.weight", "decoder/tokens", tied=("proj_out.weight",)),
    *_tower("decoder"),
    *_norm(f"{DECODER}.self_attn_layer_norm", "decoder/blocks/self_norm"),
    *_attention(f"{DECODER}.self_attn", "decoder/blocks/self_attention"),
    *_norm(f"{DECODER}.encoder_attn_layer_norm", "decoder/blocks/cross_norm"),
    *_attention(f"{DECODER}.encoder_attn", "decoder/blocks/cross_attention"),
    *_mlp(DECODER, "decoder/blocks"),
)
