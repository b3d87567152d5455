"""Names of the Q-Former in BLIP-2's checkpoint, of its queries, and of the norm before it."""

from calce_jax.checkpoints.convert.mapping import COPY, TRANSPOSE, Ignored, Row, Table, without_leading

BERT = "Qformer.bert"
LAYERS = f"{BERT}.encoder.layer.{{layer}}"


def _linear(torch: str, ours: str, every: int = 1) -> tuple[Row, Row]:
    return (
        Row(f"{torch}.weight", f"{ours}/kernel", TRANSPOSE, every),
        Row(f"{torch}.bias", f"{ours}/bias", COPY, every),
    )


def _norm(torch: str, ours: str, every: int = 1) -> tuple[Row, Row]:
    return (
        Row(f"{torch}.weight", f"{ours}/scale", COPY, every),
        Row(f"{torch}.bias", f"{ours}/bias", COPY, every),
    )


def _attention(torch: str, ours: str, every: int = 1) -> tuple[Row, ...]:
    return (
        *_linear(f"{torch}.self.query", f"{ours}/q", every),
        *_linear(f"{torch}.self.key", f"{ours}/k", every),
        *_linear(f"{torch}.self.value", f"{ours}/v", every),
        *_linear(f"{torch}.output.dense", f"{ours}/o", every),
        *_norm(f"{torch}.output.LayerNorm", f"{ours}/norm", every),
    )


def _feed_forward(into: str, out: str, ours: str) -> tuple[Row, ...]:
    return (
        *_linear(f"{into}.dense", f"{ours}/wi"),
        *_linear(f"{out}.dense", f"{ours}/wo"),
        *_norm(f"{out}.LayerNorm", f"{ours}/norm"),
    )


def visual(cross_every: int = 2) -> Table:
    """Return the rows of the half that reads frames; each `cross_every`-th layer looks at the frame."""
    return (
        Row("query_tokens", "queries", without_leading(1)),
        *_norm(f"{BERT}.embeddings.LayerNorm", "embedding_norm"),
        *_attention(f"{LAYERS}.attention", "blocks/attention"),
        *_attention(f"{LAYERS}.crossattention", "cross", cross_every),
        *_feed_forward(f"{LAYERS}.intermediate_query", f"{LAYERS}.output_query", "blocks/query_mlp"),
    )


TEXT: Table = (
    Row(f"{BERT}.embeddings.word_embeddings.weight", "words"),
    Row(f"{BERT}.embeddings.position_embeddings.weight", "positions"),
    *_feed_forward(f"{LAYERS}.intermediate", f"{LAYERS}.output", "blocks/text_mlp"),
)
BUFFERS: Table = (Ignored(f"{BERT}.embeddings.position_ids", "counts 0, 1, 2, ...; not a weight"),)
LN_VISION: Table = _norm("ln_vision", "ln_vision")


def table(cross_every: int = 2) -> Table:
    """Return all rows of a Q-Former, those of its BERT half included."""
    words = Ignored("Qformer.cls.*", "predicts words, which CALCE never asks of the Q-Former")
    return (*visual(cross_every), *TEXT, *BUFFERS, words)
