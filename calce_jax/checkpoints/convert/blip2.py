"""Mappings of BLIP-2's published checkpoints: LAVIS's, and Hugging Face's."""

import numpy as np

from calce_jax.checkpoints.convert import calce, qformer, t5, vit
from calce_jax.checkpoints.convert.mapping import (
    IgnoredKey,
    KeyMapping,
    MappingRow,
    ParamArrays,
    TensorTransform,
    add_aliases,
    add_prefix,
    mapping_rows,
    rename_keys,
)

# From LAVIS's to Hugging Face's names, applied in this order; other parts of the names are equal.
HF_RENAMES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.", "qformer."),
    ("attention.self.", "attention.attention."),
    ("t5_proj.", "language_projection."),
    ("t5_model.", "language_model."),
)
QKV_BIASES = ("blocks.{layer}.attn.q_bias", "blocks.{layer}.attn.v_bias")


def _qkv_bias_to_flax(qkv_bias: np.ndarray) -> ParamArrays:
    query, key, value = np.split(qkv_bias, 3)
    if key.any():
        raise ValueError("the bias of the keys, the middle third, must be 0: the model has none")
    return query, value


def _qkv_bias_to_torch(arrays: ParamArrays) -> np.ndarray:
    query, value = arrays
    return np.concatenate([query, np.zeros_like(query), value])


QKV_BIAS = TensorTransform(_qkv_bias_to_flax, _qkv_bias_to_torch)


def lavis_mapping(cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of `blip2_pretrained_flant5xl.pth`: the Q-Former's visual branch, `ln_vision` and `t5_proj`."""
    return (
        *qformer.LN_VISION,
        *add_prefix(qformer.visual_mapping(cross_attention_frequency), flax_prefix="qformer/"),
        *calce.T5_PROJ,
        *qformer.IGNORED_BUFFERS,
        IgnoredKey("visual_encoder.*", "frozen; read from EVA's checkpoint"),
        IgnoredKey("t5_model.*", "frozen; read from Flan-T5's checkpoint"),
    )


def hf_mapping(cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of transformers' `Blip2ForConditionalGeneration` with Flan-T5.

    Names with the prefix "model." are read too; some releases of transformers write them.
    """

    def rename(name: str) -> str:
        for lavis_name, hf_name in HF_RENAMES:
            name = name.replace(lavis_name, hf_name)
        return name

    lavis_rows = (
        *add_prefix(
            [row for row in mapping_rows(vit.KEY_MAPPING) if row.torch_name not in QKV_BIASES],
            "visual_encoder.",
            "vit/",
        ),
        *qformer.LN_VISION,
        *add_prefix(qformer.visual_mapping(cross_attention_frequency), flax_prefix="qformer/"),
        *calce.T5_PROJ,
        *add_prefix(t5.key_mapping(lora=False), "t5_model.", "t5/"),
    )
    qkv_bias_row = MappingRow(
        "vision_model.encoder.layers.{layer}.self_attn.qkv.bias",
        ("vit/blocks/attention/q/bias", "vit/blocks/attention/v/bias"),
        QKV_BIAS,
    )
    return add_aliases([*rename_keys(lavis_rows, rename), qkv_bias_row], lambda name: f"model.{name}")
