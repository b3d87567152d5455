"""Groups the rows of several batches by prompt length, so that a batch has little padding.

Dimensions: B rows of a batch, V batches of a window.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from calce_jax.batch import AnyArray, Batch, Features
from calce_jax.distributed.param_names import Params
from calce_jax.distributed.sharding import BATCH_AXES, block_on_simulated_cpu, put_batch
from calce_jax.inference.prediction import BatchPrediction, StepConfig
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import load_or_encode
from calce_jax.models.vision_features import QFormerFeatures


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RowInfo:
    """What the host needs of the rows of a batch: to group them, and to log them.

    Fields:
      example_index, row_flags: see `Batch`.
      num_frames: real frames.
      prompt_length: in tokens; None where rows are not grouped.
    """

    example_index: Int[AnyArray, " B"]
    row_flags: Int[AnyArray, " B"]
    num_frames: Int[AnyArray, " B"]
    prompt_length: Int[AnyArray, " B"] | None = None

    @staticmethod
    def of(batch: Batch, prompt_length: Int[AnyArray, " B"] | None = None) -> "RowInfo":
        """Return the information on a batch, on the host or on the device."""
        return RowInfo(batch.example_index, batch.row_flags, batch.frame_mask.sum(axis=1), prompt_length)


@dataclass(frozen=True)
class BatchWindow:
    """Encoded batches.

    Fields:
      leaves: of their `Batch`, with features in place of frames; each (V, B, ...), on the devices.
      treedef: structure of a `Batch` of such leaves.
      row_info: of all V * B rows, numpy; the same on every host.
    """

    leaves: list[Array]
    treedef: Any
    row_info: RowInfo

    @property
    def num_batches(self) -> int:
        """Number of batches, V."""
        return self.leaves[0].shape[0]

    def rows_by_length(self) -> Int[np.ndarray, "V B"]:
        """Return the rows (0 to V B - 1) of each batch: the B shortest prompts, the next B, and so on."""
        assert self.row_info.prompt_length is not None
        return np.argsort(self.row_info.prompt_length, kind="stable").reshape(self.num_batches, -1)


class LengthGrouper:
    """Encodes batches, and gathers any of their rows into a batch.

    Three functions are compiled: one encodes a batch; one stacks and one gathers rows, both for each number of batches
    (that of a window, and that of the last window of an epoch).

    Args:
      graph: the model's structure, from `calce_jax.models.structure.split_params`.
      config: selection of key frames and captions.
      mesh: of the batches.

    Attributes:
      encode_batch, stack_batches, gather_rows: the compiled functions, on arrays that are on the devices.
    """

    def __init__(self, graph: Any, config: StepConfig, mesh: Mesh, options: dict[str, str] | None = None):
        def encode(trainable: Params, frozen: Params, batch: Batch) -> tuple[Batch, RowInfo]:
            model: Calce = nnx.merge(graph, trainable, frozen)
            vision_features = load_or_encode(model, batch, config.behaviour)
            prompt_selection = model.select(vision_features, batch, config.selection)
            row_info = RowInfo.of(batch, prompt_selection.prompt_lengths)
            # Of frozen weights, so the step need not compute it again. The original's has dropout in training.
            similarity = prompt_selection.caption_selection.similarity if config.behaviour == "default" else None
            # Stored features may have a narrower dtype than the encoded ones: those stay as they are.
            features = batch.features
            if isinstance(vision_features, QFormerFeatures):
                features = Features(values=vision_features.queries, means=vision_features.means)
            elif features is None:
                features = Features(values=vision_features)
            return replace(batch.without_frames(), features=features, caption_similarity=similarity), row_info

        def stack(batches: Sequence[Batch]) -> list[Array]:
            return [jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, batches), strict=True)]

        def take_rows(leaves: list[Array], rows: Int[Array, " B"]) -> list[Array]:
            return [leaf[rows // leaf.shape[1], rows % leaf.shape[1]] for leaf in leaves]

        batch_sharding, replicated = (NamedSharding(mesh, spec) for spec in (P(BATCH_AXES), P()))
        self._mesh = mesh
        self.encode_batch = jax.jit(encode, out_shardings=(batch_sharding, replicated), compiler_options=options)
        self.stack_batches = jax.jit(stack, out_shardings=NamedSharding(mesh, P(None, BATCH_AXES)))
        self.gather_rows = jax.jit(take_rows, out_shardings=batch_sharding)

    def encode_window(self, trainable: Params, frozen: Params, batches: Iterable[Batch]) -> BatchWindow:
        """Encode this host's parts of V batches; waits for the devices."""
        block_on_simulated_cpu(trainable)
        outputs = [
            block_on_simulated_cpu(self.encode_batch(trainable, frozen, put_batch(batch, self._mesh)))
            for batch in batches
        ]
        encoded_batches, row_info = zip(*outputs, strict=True)
        row_info = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(row_info))
        return BatchWindow(
            block_on_simulated_cpu(self.stack_batches(encoded_batches)),
            jax.tree.structure(encoded_batches[0]),
            row_info,
        )

    def take_rows(self, window: BatchWindow, rows: Int[np.ndarray, " B"]) -> Batch:
        """Return a batch of the given rows (0 to V B - 1) of a window."""
        return jax.tree.unflatten(
            window.treedef, block_on_simulated_cpu(self.gather_rows(window.leaves, rows.astype(np.int32)))
        )


def make_batch_predictor(
    predict: Callable[[Params, Params, Batch], BatchPrediction],
    mesh: Mesh,
    grouper: LengthGrouper | None = None,
    batches_per_window: int = 1,
) -> Callable[[Params, Params, Iterable[Batch]], Iterator[BatchPrediction]]:
    """Return a function that predicts batch after batch, with rows grouped by prompt length if there is a grouper.

    Args:
      predict: compiled, from `calce_jax.inference.predict_step.compile_predict`.
      mesh: of the batches.
      grouper: encodes windows of batches; without one every batch is predicted as it is.
      batches_per_window: V.

    Returns:
      `run(trainable, frozen, batches)`, which takes this host's parts of batches, and yields the predictions of all
      hosts as numpy arrays, in input order, regardless of grouping.
    """

    def run(trainable: Params, frozen: Params, batches: Iterable[Batch]) -> Iterator[BatchPrediction]:
        if grouper is None:
            for batch in batches:
                yield jax.device_get(predict(trainable, frozen, put_batch(batch, mesh)))
            return
        remaining = iter(batches)
        while window_batches := list(islice(remaining, batches_per_window)):
            batch_window = grouper.encode_window(trainable, frozen, window_batches)
            order = batch_window.rows_by_length()
            predictions = [
                block_on_simulated_cpu(predict(trainable, frozen, grouper.take_rows(batch_window, rows)))
                for rows in order
            ]
            merged = jax.tree.map(_merge_leaves, *jax.device_get(predictions))
            for rows in np.split(np.argsort(order.ravel()), len(window_batches)):
                yield jax.tree.map(lambda leaf, rows=rows: leaf[rows] if leaf.ndim else leaf, merged)

    return run


def _merge_leaves(*leaves: Any) -> np.ndarray:
    """Concatenate leaves with a batch axis; of scalars (decoding steps of a batch) return the largest."""
    return np.concatenate(leaves) if leaves[0].ndim else np.array(max(leaves))
