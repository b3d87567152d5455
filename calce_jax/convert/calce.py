"""Names of the whole model, as the original's state dict has them."""

from calce_jax.convert import qformer, t5, vit
from calce_jax.convert.table import TRANSPOSE, Row, Table, prefixed


def table(*, lora: bool, peft: t5.Peft = "0.5", cross_every: int = 2) -> Table:
    """Return the rows of CALCE, put together from those of its parts.

    Args:
      lora: whether T5 has adapters; its names then carry peft's prefix.
      peft: which peft's spelling to write.
      cross_every: which layers of the Q-Former look at the frame.
    """
    prefix = "t5_model.base_model.model." if lora else "t5_model."
    return (
        *prefixed(vit.TABLE, "visual_encoder.", "vit/"),
        *qformer.LN_VISION,
        *prefixed(qformer.table(cross_every), ours="qformer/"),
        Row("query_proj.weight", "query_proj/kernel", TRANSPOSE),
        Row("query_proj.bias", "query_proj/bias"),
        Row("t5_proj.weight", "t5_proj/kernel", TRANSPOSE),
        Row("t5_proj.bias", "t5_proj/bias"),
        *prefixed(t5.table(lora=lora, peft=peft), prefix, "t5/"),
    )
