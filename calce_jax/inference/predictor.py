"""Predictions for examples outside the tables: each video is encoded once, then its queries are predicted.

Both functions are compiled once; predictions have two batch sizes, 1 and `max_batch_size`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from calce_jax.batch import Batch
from calce_jax.distributed.sharding import put_batch
from calce_jax.inference.answers import Answer, decode_answers
from calce_jax.inference.prediction import BatchPrediction, step_config
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.input_config import input_config, text_sizes
from calce_jax.input_pipeline.rows import Row, RowMaker, stack_rows, stored_frame_positions
from calce_jax.models.segment_ranker import pool_queries
from calce_jax.models.vision_features import QFormerFeatures
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.text.answer_grammar import answer_grammar
from calce_jax.text.prompt import PromptWriter, answer_token_limit


class Predictor:
    """Predicts single examples with a trained model.

    Args:
      model: config and weights.
      max_duration: of the longest video, in seconds; it limits the length of answers.
      programs: has the compiled programs, if they ran in an earlier process.

    Attributes:
      model: as given.
      num_frames: T of the model's config.
      max_batch_size: queries of a batch.
    """

    def __init__(self, model: TrainedModel, max_duration: float, programs: ProgramCache | None = None):
        config, tokenizers = model.config, model.tokenizers
        inputs = input_config(config, config.data.eval_split, model.model_config, training=False)
        writer = PromptWriter(
            tokenizers.t5,
            tokenizers.bert,
            text_sizes(inputs),
            stage=config.stage,
            behaviour=config.behaviour,
            method=config.method,
        )
        self.model, self.num_frames, self._programs = model, config.data.frames, programs
        self._make_pixel_row, self._make_row = (
            RowMaker(
                writer,
                image_size=inputs.image_size,
                max_windows=inputs.max_windows,
                use_captions=inputs.use_captions,
                decode_pixels=pixels,
            )
            for pixels in (True, False)
        )
        self._program_config = step_config(
            config, answer_token_limit(tokenizers.t5, max_duration), answer_grammar(config, tokenizers.t5, max_duration)
        )
        self._num_devices = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
        self.max_batch_size = inputs.batch_size

    def encode_video(self, example: Example) -> QFormerFeatures:
        """Return the Q-Former features of an example's video as numpy arrays (1, T, ...)."""
        row = self._make_pixel_row(example, 0, None)
        frames = np.stack([row["frames"]] * self._num_devices)
        features = self._run(self._encode_video, frames)
        return jax.tree.map(lambda array: array[:1], features)

    def features_from_arrays(self, arrays: Mapping[str, np.ndarray]) -> QFormerFeatures:
        """Rebuild features that `encode_video` returned from the arrays of their fields, such as a cache holds.

        Raises:
          ValueError: fields, shapes or dtypes are not those that `encode_video` returns.
        """
        model_config, qformer = self.model.model_config, self.model.model_config.qformer
        expected = {
            "means": ((1, self.num_frames, model_config.vit.width), jnp.dtype(jnp.float32)),
            "queries": ((1, self.num_frames, qformer.query_tokens, qformer.width), jnp.dtype(model_config.dtype)),
        }
        if (actual := {name: (array.shape, array.dtype) for name, array in arrays.items()}) != expected:
            raise ValueError(f"features must be {expected}, got {actual}")
        return QFormerFeatures(**arrays)

    def predict(self, examples: Sequence[Example], features: Sequence[QFormerFeatures]) -> list[Answer]:
        """Return the answers, in order.

        Args:
          examples: the queries; their frames are not read.
          features: of the video of each, from `encode_video`.
        """
        answers: list[Answer] = []
        # Two sizes, since every other one would be compiled; one query about a short video is the common case.
        size = 1 if len(examples) == 1 else self.max_batch_size
        size = -(-size // self._num_devices) * self._num_devices
        for first in range(0, len(examples), size):
            rows = [self._make_row(example, n, None) for n, example in enumerate(examples[first : first + size], first)]
            batch = Batch(**stack_rows(self._pad_rows(rows, size)))
            batch_features = list(features[first : first + size])
            batch_features += [batch_features[0]] * (size - len(batch_features))
            stacked = jax.tree.map(lambda *arrays: np.concatenate(arrays), *batch_features)
            prediction: BatchPrediction = self._run(self._predict, stacked, batch)
            config = self.model.config
            answers += decode_answers(
                prediction,
                self.model.tokenizers.t5,
                [example.duration for example in examples],
                window_order=config.generation.window_order,
                decision=config.generation.decision,
                window_grid=config.data.window_grid,
                behaviour=config.behaviour,
            )
        return answers

    def pool_features(self, example: Example, features: QFormerFeatures) -> Float[np.ndarray, "F G W"]:
        """Return `calce_jax.models.segment_ranker.pool_queries` of an example's video, without padded frames."""
        positions = stored_frame_positions(example.total_frames, example.indices, self.num_frames)
        return pool_queries(features.queries[0][: len(positions)])

    def mean_word_embeddings(self, sentences: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Return the mean of the embeddings that T5 has of the words of each of N sentences, float32."""
        tokens = [self.model.tokenizers.t5(text, add_special_tokens=False)["input_ids"] or [0] for text in sentences]
        with jax.set_mesh(self.model.mesh):
            table = self.model.frozen["t5"]["shared"]["embedding"]
            return np.stack([np.asarray(table[jnp.asarray(ids)], np.float32).mean(axis=0) for ids in tokens])

    def _pad_rows(self, rows: Sequence[Row], size: int) -> list[Row]:
        return [*rows, *[self._make_row.padding_row(rows[0])] * (size - len(rows))]

    def _run(self, program: Callable[..., Any], *inputs: Any) -> Any:
        model = self.model
        with jax.set_mesh(model.mesh):
            placed = [put_batch(array, model.mesh) for array in inputs]
            return jax.device_get(program(model.trainable, model.frozen, *placed))

    @cached_property
    def _encode_video(self) -> Callable[..., QFormerFeatures]:
        def make() -> Callable[..., QFormerFeatures]:
            from calce_jax.inference.predict_step import make_encode_video  # noqa: PLC0415  (see `_compile`)

            return make_encode_video(self.model.graph)

        return self._compile("encode_video", make, self.model.model_config)

    @cached_property
    def _predict(self) -> Callable[..., BatchPrediction]:
        def make() -> Callable[..., BatchPrediction]:
            from calce_jax.inference.predict_step import make_predict_from_features  # noqa: PLC0415

            return make_predict_from_features(self.model.graph, self._program_config)

        return self._compile("predict", make, (self.model.model_config, self._program_config))

    def _compile(self, name: str, make: Callable[[], Callable[..., Any]], settings: object) -> Callable[..., Any]:
        """Return a compiled function; where it is kept, the classes of the model and flax are not imported."""
        options = self.model.compiler_options
        if self._programs is None:
            return jax.jit(make(), compiler_options=options)
        return self._programs.keep(name, make, settings, self.model.mesh, options)
