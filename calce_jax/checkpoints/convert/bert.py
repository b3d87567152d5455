"""Names of bert-base-uncased, from which the Q-Former's text half comes."""

from calce_jax.checkpoints.convert import qformer
from calce_jax.checkpoints.convert.mapping import IgnoredKey, KeyMapping, add_aliases, add_prefix, rename_keys


def _legacy_norm_name(name: str) -> str:
    """Return the name that the first releases gave a norm's weights."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def key_mapping() -> KeyMapping:
    """Return the rows of BERT's words, positions and feed-forwards; BLIP-2 has trained the rest anew."""
    rows = rename_keys(
        add_prefix(qformer.TEXT_BRANCH, flax_prefix="qformer/"), lambda name: name.removeprefix("Qformer.")
    )
    retrained_reason = "BLIP-2's checkpoint has its own"
    ignored = (
        IgnoredKey("bert.embeddings.LayerNorm.*", retrained_reason),
        IgnoredKey("bert.encoder.layer.*.attention.*", retrained_reason),
        IgnoredKey("bert.embeddings.token_type_embeddings.weight", "the Q-Former's sentences are of one type"),
        IgnoredKey("bert.embeddings.position_ids", "counts 0, 1, 2, ...; not a weight"),
        IgnoredKey("bert.pooler.*", "CALCE takes [CLS] as the last layer leaves it"),
    )
    mlm_head = IgnoredKey("cls.*", "predicts words, which CALCE never asks of the Q-Former")
    return (
        *add_aliases(add_aliases((*rows, *ignored), _legacy_norm_name), lambda name: name.removeprefix("bert.")),
        mlm_head,
    )
