"""Names of the whole model as the original's state dict has them, and of what the original saves of it."""

from calce_jax.checkpoints.convert import qformer, t5, vit
from calce_jax.checkpoints.convert.mapping import TRANSPOSE, Ignored, Row, Table, prefixed, rows_of

PEFT = "t5_model.base_model.model."
QUERY_PROJ: Table = (
    Row("query_proj.weight", "query_proj/kernel", TRANSPOSE),
    Row("query_proj.bias", "query_proj/bias"),
)
T5_PROJ: Table = (Row("t5_proj.weight", "t5_proj/kernel", TRANSPOSE), Row("t5_proj.bias", "t5_proj/bias"))


def table(*, lora: bool, peft: t5.Peft = "0.5", cross_every: int = 2) -> Table:
    """Return the rows of CALCE, put together from those of its parts.

    Args:
      lora: whether T5 has adapters; its names then carry peft's prefix.
      peft: which peft's spelling to write.
      cross_every: which layers of the Q-Former look at the frame.
    """
    return (
        *prefixed(vit.TABLE, "visual_encoder.", "vit/"),
        *qformer.LN_VISION,
        *prefixed(qformer.table(cross_every), ours="qformer/"),
        *QUERY_PROJ,
        *T5_PROJ,
        *prefixed(t5.table(lora=lora, peft=peft), PEFT if lora else "t5_model.", "t5/"),
    )


def checkpoint(*, query_proj: bool = True) -> Table:
    """Return the rows of a checkpoint of either stage: what was trained. Frozen weights are not in it.

    Args:
      query_proj: False for Mr. BLIP, which has none.
    """
    tied = "the same numbers as a frozen weight, saved because the original's filter goes by names of parameters"
    return (
        *qformer.LN_VISION,
        *(QUERY_PROJ if query_proj else ()),
        *T5_PROJ,
        *prefixed(adapters(), PEFT, "t5/"),
        *(Ignored(f"{PEFT}{tower}.embed_tokens.weight", tied) for tower in t5.TOWERS),
        Ignored("Qformer.cls.predictions.decoder.*", tied),
        *qformer.BUFFERS,
    )


def adapters() -> list[Row]:
    """Return the rows of T5's LoRA, without peft's prefix."""
    return [row for row in rows_of(t5.table(lora=True)) if row.parts[0].endswith(("/a", "/b"))]
