"""The input pipeline: from the tables of a prepared folder to batches."""

from calce_jax.input_pipeline.batches import (
    InputConfig,
    abstract_batch,
    batches_per_epoch,
    make_iterator,
    text_sizes,
)
from calce_jax.input_pipeline.row_flags import RowFlagCounter
from calce_jax.input_pipeline.rows import InputError

__all__ = [
    "InputConfig",
    "InputError",
    "RowFlagCounter",
    "abstract_batch",
    "batches_per_epoch",
    "make_iterator",
    "text_sizes",
]
