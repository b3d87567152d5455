"""Mapping of the original CALCE: its full state dict, and its checkpoints of trained weights."""

from calce_jax.checkpoints.convert import qformer, t5, vit
from calce_jax.checkpoints.convert.mapping import (
    TRANSPOSE,
    IgnoredKey,
    KeyMapping,
    MappingRow,
    add_prefix,
    mapping_rows,
)

PEFT_PREFIX = "t5_model.base_model.model."
QUERY_PROJ: KeyMapping = (
    MappingRow("query_proj.weight", "query_proj/kernel", TRANSPOSE),
    MappingRow("query_proj.bias", "query_proj/bias"),
)
T5_PROJ: KeyMapping = (
    MappingRow("t5_proj.weight", "t5_proj/kernel", TRANSPOSE),
    MappingRow("t5_proj.bias", "t5_proj/bias"),
)


def key_mapping(*, lora: bool, peft_version: t5.PeftVersion = "0.5", cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of the full model.

    Args:
      lora: whether T5 has adapters; its PyTorch names then have peft's prefix.
      peft_version: whose names to write, see `t5.key_mapping`.
      cross_attention_frequency: every such layer of the Q-Former has cross-attention.
    """
    return (
        *add_prefix(vit.KEY_MAPPING, "visual_encoder.", "vit/"),
        *qformer.LN_VISION,
        *add_prefix(qformer.key_mapping(cross_attention_frequency), flax_prefix="qformer/"),
        *QUERY_PROJ,
        *T5_PROJ,
        *add_prefix(t5.key_mapping(lora=lora, peft_version=peft_version), PEFT_PREFIX if lora else "t5_model.", "t5/"),
    )


def checkpoint_mapping(*, query_proj: bool = True) -> KeyMapping:
    """Return the rows of a checkpoint of either stage, which holds the trained weights alone.

    Args:
      query_proj: whether the checkpoint has `query_proj`; those of Mr. BLIP do not.
    """
    tied_reason = "tied to a frozen weight; saved because the original filters by names of parameters"
    return (
        *qformer.LN_VISION,
        *(QUERY_PROJ if query_proj else ()),
        *T5_PROJ,
        *add_prefix(adapter_rows(), PEFT_PREFIX, "t5/"),
        *(IgnoredKey(f"{PEFT_PREFIX}{tower}.embed_tokens.weight", tied_reason) for tower in t5.TOWERS),
        IgnoredKey("Qformer.cls.predictions.decoder.*", tied_reason),
        *qformer.IGNORED_BUFFERS,
    )


def adapter_rows() -> list[MappingRow]:
    """Return the rows of T5's LoRA adapters, without peft's prefix."""
    return [row for row in mapping_rows(t5.key_mapping(lora=True)) if row.param_names[0].endswith(("/a", "/b"))]
