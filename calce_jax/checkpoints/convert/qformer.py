"""Mapping of BLIP-2's Q-Former, its query tokens, and the norm `ln_vision` before it."""

from calce_jax.checkpoints.convert.mapping import COPY, TRANSPOSE, IgnoredKey, KeyMapping, MappingRow, squeeze_leading

BERT_PREFIX = "Qformer.bert"
LAYER_PREFIX = f"{BERT_PREFIX}.encoder.layer.{{layer}}"


def _linear(torch_name: str, flax_name: str, layer_stride: int = 1) -> tuple[MappingRow, MappingRow]:
    return (
        MappingRow(f"{torch_name}.weight", f"{flax_name}/kernel", TRANSPOSE, layer_stride),
        MappingRow(f"{torch_name}.bias", f"{flax_name}/bias", COPY, layer_stride),
    )


def _norm(torch_name: str, flax_name: str, layer_stride: int = 1) -> tuple[MappingRow, MappingRow]:
    return (
        MappingRow(f"{torch_name}.weight", f"{flax_name}/scale", COPY, layer_stride),
        MappingRow(f"{torch_name}.bias", f"{flax_name}/bias", COPY, layer_stride),
    )


def _attention(torch_name: str, flax_name: str, layer_stride: int = 1) -> tuple[MappingRow, ...]:
    return (
        *_linear(f"{torch_name}.self.query", f"{flax_name}/q", layer_stride),
        *_linear(f"{torch_name}.self.key", f"{flax_name}/k", layer_stride),
        *_linear(f"{torch_name}.self.value", f"{flax_name}/v", layer_stride),
        *_linear(f"{torch_name}.output.dense", f"{flax_name}/o", layer_stride),
        *_norm(f"{torch_name}.output.LayerNorm", f"{flax_name}/norm", layer_stride),
    )


def _feed_forward(torch_in: str, torch_out: str, flax_name: str) -> tuple[MappingRow, ...]:
    return (
        *_linear(f"{torch_in}.dense", f"{flax_name}/wi"),
        *_linear(f"{torch_out}.dense", f"{flax_name}/wo"),
        *_norm(f"{torch_out}.LayerNorm", f"{flax_name}/norm"),
    )


def visual_mapping(cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of the visual branch; every `cross_attention_frequency`-th layer has cross-attention."""
    return (
        MappingRow("query_tokens", "queries", squeeze_leading(1)),
        *_norm(f"{BERT_PREFIX}.embeddings.LayerNorm", "embedding_norm"),
        *_attention(f"{LAYER_PREFIX}.attention", "blocks/attention"),
        *_attention(f"{LAYER_PREFIX}.crossattention", "cross", cross_attention_frequency),
        *_feed_forward(f"{LAYER_PREFIX}.intermediate_query", f"{LAYER_PREFIX}.output_query", "blocks/query_mlp"),
    )


TEXT_BRANCH: KeyMapping = (
    MappingRow(f"{BERT_PREFIX}.embeddings.word_embeddings.weight", "words"),
    MappingRow(f"{BERT_PREFIX}.embeddings.position_embeddings.weight", "positions"),
    *_feed_forward(f"{LAYER_PREFIX}.intermediate", f"{LAYER_PREFIX}.output", "blocks/text_mlp"),
)
IGNORED_BUFFERS: KeyMapping = (
    IgnoredKey(f"{BERT_PREFIX}.embeddings.position_ids", "a buffer of 0, 1, 2, ...; not a weight"),
)
LN_VISION: KeyMapping = _norm("ln_vision", "ln_vision")


def key_mapping(cross_attention_frequency: int = 2) -> KeyMapping:
    """Return the rows of the Q-Former with both branches, visual and text."""
    mlm_head = IgnoredKey("Qformer.cls.*", "word prediction head, which CALCE does not use")
    return (*visual_mapping(cross_attention_frequency), *TEXT_BRANCH, *IGNORED_BUFFERS, mlm_head)
