"""Asking a trained run about examples that are in no table: first what is seen in each video, then each query.

Programs are compiled for two sizes of batches, so that a second question, or the next video, finds them compiled.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calce_jax.batch import Batch
from calce_jax.distributed.sharding import put_batch
from calce_jax.inference.answers import Answer, read_answers
from calce_jax.inference.predict_step import BatchPrediction, make_answer, make_look, step_config
from calce_jax.inference.trained_run import Trained
from calce_jax.input_pipeline import text_sizes
from calce_jax.input_pipeline.batches import input_config
from calce_jax.input_pipeline.dataset import Example
from calce_jax.input_pipeline.rows import Row, RowMaker, as_batch
from calce_jax.models.vision_features import Looked
from calce_jax.text.prompt import PromptWriter, longest_answer


def ask(trained: Trained, examples: Sequence[Example]) -> list[Answer]:
    """Ask about examples, each with a video of its own."""
    asker = Asker(trained, max(example.duration for example in examples))
    return asker.ask(examples, [asker.look(example) for example in examples])


class Asker:
    """A trained run, ready for examples.

    Args:
      trained: the run.
      longest: seconds of the longest video; answers may be as long as it allows.

    Attributes:
      frames: T of the run.
      most: queries in a batch at most.
    """

    def __init__(self, trained: Trained, longest: float):
        config, tokenizers = trained.config, trained.tokenizers
        inputs = input_config(config, config.data.eval_split, trained.sizes, training=False)
        writer = PromptWriter(
            tokenizers.t5, tokenizers.bert, text_sizes(inputs), stage=config.stage, behaviour=config.behaviour
        )
        self.trained, self.frames = trained, config.data.frames
        self._with_pixels, self._make = (
            RowMaker(
                writer,
                image_size=inputs.image_size,
                windows=inputs.windows,
                use_captions=inputs.use_captions,
                pixels=pixels,
            )
            for pixels in (True, False)
        )
        self._answer_tokens = longest_answer(tokenizers.t5, longest)
        self._devices = trained.mesh.shape["data"] * trained.mesh.shape["fsdp"]
        self.most = inputs.batch_size

    def look(self, example: Example) -> Looked:
        """Return what is seen in an example's video, on the host, with a first axis of 1."""
        row = self._with_pixels(example, 0, None)
        frames = np.stack([row["frames"]] * self._devices)
        looked = self._run(self._look, frames)
        return jax.tree.map(lambda array: array[:1], looked)

    def looked_of(self, arrays: Mapping[str, np.ndarray]) -> Looked:
        """Return what `look` returned, from the arrays of its fields.

        Raises:
          ValueError: these are not fields, shapes and dtypes that `look` returns.
        """
        sizes, qformer = self.trained.sizes, self.trained.sizes.qformer
        expected = {
            "means": ((1, self.frames, sizes.vit.width), jnp.dtype(jnp.float32)),
            "queries": ((1, self.frames, qformer.queries, qformer.width), jnp.dtype(sizes.dtype)),
        }
        if (found := {name: (array.shape, array.dtype) for name, array in arrays.items()}) != expected:
            raise ValueError(f"it holds {found}, what is seen in a video is {expected}")
        return Looked(**arrays)

    def ask(self, examples: Sequence[Example], looked: Sequence[Looked]) -> list[Answer]:
        """Return the answers, in order.

        Args:
          examples: the queries.
          looked: what is seen in the video of each.
        """
        answers: list[Answer] = []
        # One of two sizes: a short video and a sentence is the common case, and any other would be compiled anew.
        size = 1 if len(examples) == 1 else self.most
        size = -(-size // self._devices) * self._devices
        for first in range(0, len(examples), size):
            rows = [self._make(example, n, None) for n, example in enumerate(examples[first : first + size], first)]
            batch = Batch(**as_batch(self._filled(rows, size)))
            seen = list(looked[first : first + size])
            seen += [seen[0]] * (size - len(seen))
            together = jax.tree.map(lambda *arrays: np.concatenate(arrays), *seen)
            prediction: BatchPrediction = self._run(self._answer, together, batch)
            config = self.trained.config
            answers += read_answers(
                prediction, self.trained.tokenizers.t5, by=config.generation.window_order, behaviour=config.behaviour
            )
        return answers

    def _filled(self, rows: Sequence[Row], size: int) -> list[Row]:
        return [*rows, *[self._make.filler(rows[0])] * (size - len(rows))]

    def _run(self, program: Callable[..., Any], *host: Any) -> Any:
        trained = self.trained
        with jax.set_mesh(trained.mesh):
            placed = [put_batch(each, trained.mesh) for each in host]
            return jax.device_get(program(trained.trainable, trained.frozen, *placed))

    @cached_property
    def _look(self) -> Callable[..., Looked]:
        return jax.jit(make_look(self.trained.graph))

    @cached_property
    def _answer(self) -> Callable[..., BatchPrediction]:
        return jax.jit(make_answer(self.trained.graph, step_config(self.trained.config, self._answer_tokens)))
