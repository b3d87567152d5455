"""The programs of a run with abstract arguments, for compilation without weights or devices."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calce_jax.checkpoints.restore import calce_config
from calce_jax.config import RunConfig
from calce_jax.distributed.sharding import BATCH_AXES, abstract_like, param_shardings
from calce_jax.inference.predict_step import compile_predict, make_predict, step_config
from calce_jax.input_pipeline.input_config import abstract_batch, input_config
from calce_jax.models.calce import Calce, split_params
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import compile_train_step, make_train_step

# Vocabulary sizes of Flan-T5 and BERT; ignored by the sizes with published weights, which fix them.
T5_VOCAB, BERT_VOCAB = 32128, 30522


class AbstractRun:
    """Model, state and batches of a run as shapes with shardings on a mesh."""

    def __init__(self, config: RunConfig, mesh: Mesh):
        self.config, self.mesh = config, mesh
        self.model_config = calce_config(config, t5_vocab=T5_VOCAB, bert_vocab=BERT_VOCAB)
        make = partial(Calce, self.model_config)
        self.graph = nnx.graphdef(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
        weights = jax.eval_shape(lambda: split_params(make(rngs=nnx.Rngs(0)), config.model.frozen_dtype)[1:])
        self.trainable, self.frozen = self._with_shardings(weights)
        self.optimizer = make_optimizer(config.optimizer, config.behaviour)
        self.state = self._with_shardings(
            jax.eval_shape(partial(create_train_state, optimizer=self.optimizer), self.trainable)
        )
        self.program_config = step_config(config, config.text.answer_tokens)

    def batch(self, *, training: bool) -> Any:
        """Return the shapes of a batch, sharded over the mesh."""
        inputs = input_config(self.config, self.config.data.train_split, self.model_config, training=training)
        shapes = abstract_batch(inputs)
        return abstract_like(shapes, jax.tree.map(lambda _: NamedSharding(self.mesh, P(BATCH_AXES)), shapes))

    def _with_shardings(self, tree: Any) -> Any:
        return abstract_like(tree, param_shardings(tree, self.mesh))


def train_step(run: AbstractRun) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return a micro-step as `calce_jax.training.run` compiles it, and its arguments."""
    schedule = run.config.schedule
    learning_rate_fn = partial(
        learning_rate,
        steps_per_epoch=1000,
        epochs=schedule.epochs,
        peak=schedule.peak,
        floor=schedule.floor,
        warmup_steps=schedule.warmup_steps,
    )
    step = make_train_step(run.graph, run.program_config, run.optimizer, learning_rate_fn)
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=NamedSharding(run.mesh, P()))
    return compile_train_step(step, run.state), (run.state, run.frozen, run.batch(training=True), key)


def vision_encode(run: AbstractRun) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the vision tower, and the frames of a batch as its argument."""

    def encode_frames(trainable: nnx.State, frozen: nnx.State, frames: jax.Array) -> jax.Array:
        return nnx.merge(run.graph, trainable, frozen).encode_frames(frames)

    return jax.jit(encode_frames), (run.trainable, run.frozen, run.batch(training=False).frames)


def generate(run: AbstractRun) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return inference from frames to answers, with beam search, and its arguments."""
    predict = compile_predict(make_predict(run.graph, run.program_config), run.mesh)
    return predict, (run.trainable, run.frozen, run.batch(training=False))


PROGRAMS = {"train_step": train_step, "vision_encode": vision_encode, "generate": generate}
