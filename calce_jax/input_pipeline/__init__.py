"""From the tables of a prepared folder to batches."""

from calce_jax.input_pipeline.batches import (
    InputConfig,
    InputError,
    abstract_batch,
    batches_an_epoch,
    make_iterator,
    text_sizes,
)
from calce_jax.input_pipeline.row_flags import NoteCounter

__all__ = [
    "InputConfig",
    "InputError",
    "NoteCounter",
    "abstract_batch",
    "batches_an_epoch",
    "make_iterator",
    "text_sizes",
]
