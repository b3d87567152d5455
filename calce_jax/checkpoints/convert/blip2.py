"""Names of BLIP-2's published checkpoints: LAVIS's own, and Hugging Face's."""

import numpy as np

from calce_jax.checkpoints.convert import calce, qformer, t5, vit
from calce_jax.checkpoints.convert.mapping import (
    Ignored,
    Operation,
    Parts,
    Row,
    Table,
    also_spelled,
    prefixed,
    renamed,
    rows_of,
)

# In this order; what the original and Hugging Face call the same is not here.
HUGGING_FACE = (
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
BIASES = ("blocks.{layer}.attn.q_bias", "blocks.{layer}.attn.v_bias")


def _bias_to_flax(fused: np.ndarray) -> Parts:
    query, key, value = np.split(fused, 3)
    if key.any():
        raise ValueError("has a bias on the keys, the middle third, which the model does not")
    return query, value


def _bias_to_torch(parts: Parts) -> np.ndarray:
    query, value = parts
    return np.concatenate([query, np.zeros_like(query), value])


BIAS_WITHOUT_KEYS = Operation(_bias_to_flax, _bias_to_torch)


def lavis(cross_every: int = 2) -> Table:
    """Return the rows of `blip2_pretrained_flant5xl.pth`: the half of the Q-Former that reads frames, and around it."""
    return (
        *qformer.LN_VISION,
        *prefixed(qformer.visual(cross_every), ours="qformer/"),
        *calce.T5_PROJ,
        *qformer.BUFFERS,
        Ignored("visual_encoder.*", "frozen; comes from EVA's own file"),
        Ignored("t5_model.*", "frozen; comes from Flan-T5's own file"),
    )


def hugging_face(cross_every: int = 2) -> Table:
    """Return the rows of transformers' `Blip2ForConditionalGeneration` with Flan-T5.

    Read are also names that begin with "model.", as releases give them that put a base model between.
    """

    def rename(name: str) -> str:
        for original, theirs in HUGGING_FACE:
            name = name.replace(original, theirs)
        return name

    original = (
        *prefixed([row for row in rows_of(vit.TABLE) if row.torch not in BIASES], "visual_encoder.", "vit/"),
        *qformer.LN_VISION,
        *prefixed(qformer.visual(cross_every), ours="qformer/"),
        *calce.T5_PROJ,
        *prefixed(t5.table(lora=False), "t5_model.", "t5/"),
    )
    fused = Row(
        "vision_model.encoder.layers.{layer}.self_attn.qkv.bias",
        ("vit/blocks/attention/q/bias", "vit/blocks/attention/v/bias"),
        BIAS_WITHOUT_KEYS,
    )
    return also_spelled([*renamed(original, rename), fused], lambda name: f"model.{name}")
