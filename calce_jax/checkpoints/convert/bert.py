"""Mapping of bert-base-uncased, whose weights the Q-Former's text branch has."""

from calce_jax.checkpoints.convert import qformer
from calce_jax.checkpoints.convert.mapping import IgnoredKey, KeyMapping, add_aliases, add_prefix, rename_keys


def _legacy_norm_name(name: str) -> str:
    """Return a norm's name as in the first releases of BERT."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def key_mapping() -> KeyMapping:
    """Return the rows of BERT's word and position embeddings and feed-forward layers; BLIP-2 trained the others."""
    rows = rename_keys(
        add_prefix(qformer.TEXT_BRANCH, flax_prefix="qformer/"), lambda name: name.removeprefix("Qformer.")
    )
    retrained_reason = "trained by BLIP-2; read from its checkpoint"
    ignored = (
        IgnoredKey("bert.embeddings.LayerNorm.*", retrained_reason),
        IgnoredKey("bert.encoder.layer.*.attention.*", retrained_reason),
        IgnoredKey("bert.embeddings.token_type_embeddings.weight", "the Q-Former has no token types"),
        IgnoredKey("bert.embeddings.position_ids", "a buffer of 0, 1, 2, ...; not a weight"),
        IgnoredKey("bert.pooler.*", "CALCE reads the last hidden state of [CLS]"),
    )
    mlm_head = IgnoredKey("cls.*", "word prediction head, which CALCE does not use")
    return (
        *add_aliases(add_aliases((*rows, *ignored), _legacy_norm_name), lambda name: name.removeprefix("bert.")),
        mlm_head,
    )
