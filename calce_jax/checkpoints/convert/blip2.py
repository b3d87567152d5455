"""Names of BLIP-2's published checkpoints: LAVIS's own, and Hugging Face's."""

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

# In this order; what the original and Hugging Face call the same is not here.
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
        raise ValueError("has a bias on the keys, the middle third, which the model does not")
    return query, value


def _qkv_bias_to_torch(arrays: ParamArrays) -> np.ndarray:
    query, value = arrays
    return np.concatenate([query, np.zeros_like(query), value])


QKV_BIAS = TensorTransform(_qkv_bias_to_flax, _qkv_bias_to_torch)


def lavis_mapping(cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of `blip2_pretrained_flant5xl.pth`: the half of the Q-Former that reads frames, and around it."""
    return (
        *qformer.LN_VISION,
        *add_prefix(qformer.visual_mapping(cross_attention_frequency), flax_prefix="qformer/"),
        *calce.T5_PROJ,
        *qformer.IGNORED_BUFFERS,
        IgnoredKey("visual_encoder.*", "frozen; comes from EVA's own file"),
        IgnoredKey("t5_model.*", "frozen; comes from Flan-T5's own file"),
    )


def hf_mapping(cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of transformers' `Blip2ForConditionalGeneration` with Flan-T5.

    Read are also names that begin with "model.", as releases give them that put a base model between.
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
