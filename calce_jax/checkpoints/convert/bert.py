"""Names of bert-base-uncased, from which the Q-Former's text half comes."""

from calce_jax.checkpoints.convert import qformer
from calce_jax.checkpoints.convert.mapping import Ignored, Table, also_spelled, prefixed, renamed


def _old(name: str) -> str:
    """Return the name that the first releases gave a norm's weights."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def table() -> Table:
    """Return the rows of BERT's words, positions and feed-forwards; BLIP-2 has trained the rest anew."""
    rows = renamed(prefixed(qformer.TEXT, ours="qformer/"), lambda name: name.removeprefix("Qformer."))
    trained = "BLIP-2's checkpoint has its own"
    ignored = (
        Ignored("bert.embeddings.LayerNorm.*", trained),
        Ignored("bert.encoder.layer.*.attention.*", trained),
        Ignored("bert.embeddings.token_type_embeddings.weight", "the Q-Former's sentences are of one type"),
        Ignored("bert.embeddings.position_ids", "counts 0, 1, 2, ...; not a weight"),
        Ignored("bert.pooler.*", "CALCE takes [CLS] as the last layer leaves it"),
    )
    heads = Ignored("cls.*", "predicts words, which CALCE never asks of the Q-Former")
    return (*also_spelled(also_spelled((*rows, *ignored), _old), lambda name: name.removeprefix("bert.")), heads)
