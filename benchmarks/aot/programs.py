"""The programs that `calce train`, `calce infer` and `calce search` run, with abstract arguments.

They are made by the same functions as those of a run, so they can be compiled without weights or devices. A preset
that groups rows by prompt length (`config.data.group`) encodes the batches of a window, stacks them, and gathers rows
of them into the batches that are trained on or predicted; so their steps get features and no frames.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calce_jax.batch import Batch
from calce_jax.checkpoints.restore import calce_config
from calce_jax.config import RunConfig, packaged_path
from calce_jax.distributed.sharding import BATCH_AXES, abstract_like, param_shardings
from calce_jax.inference.length_grouping import LengthGrouper
from calce_jax.inference.predict_step import (
    compile_predict,
    make_encode_video,
    make_predict,
    make_predict_from_features,
)
from calce_jax.inference.prediction import step_config
from calce_jax.input_pipeline.input_config import abstract_batch, input_config
from calce_jax.models.answer_grammar import AnswerGrammar
from calce_jax.models.calce import Calce
from calce_jax.models.structure import split_params
from calce_jax.search.searcher import TRAINED_DURATION
from calce_jax.text.answer_grammar import answer_grammar
from calce_jax.text.tokenizers import load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import compile_train_step, make_train_step

# Vocabulary sizes of Flan-T5 and BERT; ignored by the sizes with published weights, which fix them.
T5_VOCAB, BERT_VOCAB = 32128, 30522
# `calce_jax.text.prompt.answer_token_limit` with Flan-T5's tokenizer: of the longest video of any split, as
# `calce infer` takes it, and of the longest segment of a search.
ANSWER_TOKENS = {"qvhighlights": 210, "charades_sta": 276, "shapes": 51}
SEARCH_ANSWER_TOKENS = {"qvhighlights": 210, "charades_sta": 77, "activitynet": 252, "shapes": 51}
LONGEST_VIDEO = {"qvhighlights": 150.0, "charades_sta": 194.0, "shapes": 40.0}  # of any split, in seconds


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
      function: jitted.
      arguments: shapes with shardings.
      resident: arrays that are on the devices meanwhile, beside the arguments: the window that a grouped batch is of.
      decoding_steps: at most, of the beam search in it.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    resident: Any = None
    decoding_steps: int = 1

    @property
    def resident_bytes(self) -> int:
        """Bytes of `resident` on one device."""
        return bytes_on_a_device(self.resident)


def bytes_on_a_device(tree: Any) -> int:
    """Return the bytes of arrays on one device, from shapes with shardings."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


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
        dataset = config.data.dataset
        self.program_config = step_config(config, ANSWER_TOKENS[dataset], self.grammar(LONGEST_VIDEO[dataset]))
        self.grouper = LengthGrouper(self.graph, self.program_config, mesh)

    def grammar(self, max_duration: float) -> AnswerGrammar | None:
        """Return a grammar of the run's answers, if it has one: over the packaged tokenizer, since T5's is not here.

        Flan-T5's has twice as many tokens that occur in answers, of tables that take a few hundred kilobytes.
        """
        return answer_grammar(self.config, load_t5(packaged_path("calce_jax/assets/tiny/t5")), max_duration)

    @property
    def is_grouped(self) -> bool:
        """Whether the run groups rows by prompt length."""
        return self.config.data.group > 1

    @cached_property
    def training_batch(self) -> Batch:
        """A batch of frames for training."""
        return self._frames(training=True)

    @cached_property
    def prediction_batch(self) -> Batch:
        """A batch of frames for prediction."""
        return self._frames(training=False)

    def encoded(self, batch: Batch) -> Batch:
        """Return what `LengthGrouper` makes of a batch: features in place of frames."""
        encoded, _ = jax.eval_shape(self.grouper.encode_batch, self.trainable, self.frozen, batch)
        return self.on_batch_axes(encoded)

    def window(self, batch: Batch) -> list[Any]:
        """Return the leaves of a window of such batches, (V, B, ...) each."""
        batches = [self.encoded(batch)] * self.config.data.group
        return self._shard(jax.eval_shape(self.grouper.stack_batches, batches), P(None, BATCH_AXES))

    def step_batch(self, batch: Batch) -> Batch:
        """Return the batch that a step gets, grouped or not."""
        return self.encoded(batch) if self.is_grouped else batch

    def on_batch_axes(self, tree: Any) -> Any:
        """Return shapes whose first axis is split over the mesh."""
        return self._shard(tree, P(BATCH_AXES))

    def replicated(self, tree: Any) -> Any:
        """Return shapes that every device has all of."""
        return self._shard(tree, P())

    def _frames(self, *, training: bool) -> Batch:
        inputs = input_config(self.config, self.config.data.train_split, self.model_config, training=training)
        return self.on_batch_axes(abstract_batch(inputs))

    def _shard(self, tree: Any, spec: P) -> Any:
        sharding = NamedSharding(self.mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    def _with_shardings(self, tree: Any) -> Any:
        return abstract_like(tree, param_shardings(tree, self.mesh))


def encode(run: AbstractRun, batch: Batch) -> Program:
    """Return the encoding of a batch of a window, of which the others are encoded already."""
    return Program(run.grouper.encode_batch, (run.trainable, run.frozen, batch), run.window(batch))


def stack(run: AbstractRun, batch: Batch) -> Program:
    """Return the stacking of a window's batches."""
    return Program(run.grouper.stack_batches, ([run.encoded(batch)] * run.config.data.group,))


def gather(run: AbstractRun, batch: Batch) -> Program:
    """Return the gathering of a batch's rows from a window."""
    size = jax.tree.leaves(batch)[0].shape[0]
    rows = run.replicated(jax.ShapeDtypeStruct((size,), jnp.int32))
    return Program(run.grouper.gather_rows, (run.window(batch), rows))


def train_step(run: AbstractRun) -> Program:
    """Return a micro-step as `calce_jax.training.run` compiles it."""
    schedule = run.config.schedule
    learning_rate_fn = partial(
        learning_rate,
        steps_per_epoch=1000,
        epochs=schedule.epochs,
        peak=schedule.peak,
        floor=schedule.floor,
        warmup_from=schedule.warmup_from,
        warmup_steps=schedule.warmup_steps,
        behaviour=run.config.behaviour,
        first_step=0,
    )
    step = make_train_step(run.graph, run.program_config, run.optimizer, learning_rate_fn)
    key = run.replicated(jax.eval_shape(lambda: jax.random.key(0)))
    arguments = run.state, run.frozen, run.step_batch(run.training_batch), key
    return Program(compile_train_step(step, run.state), arguments, _window_if_grouped(run, run.training_batch))


def infer_predict(run: AbstractRun) -> Program:
    """Return the prediction of `calce infer` and of the evaluations during training."""
    arguments = run.trainable, run.frozen, run.step_batch(run.prediction_batch)
    return Program(
        compile_predict(make_predict(run.graph, run.program_config), run.mesh),
        arguments,
        _window_if_grouped(run, run.prediction_batch),
        decoding_steps=run.program_config.max_answer_length,
    )


def search_encode(run: AbstractRun) -> Program:
    """Return the encoding of a segment by `calce search`: one on each device, all the same."""
    frames, devices = run.prediction_batch.frames, run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    frames = jax.ShapeDtypeStruct((devices, *frames.shape[1:]), frames.dtype, sharding=frames.sharding)
    return Program(jax.jit(make_encode_video(run.graph)), (run.trainable, run.frozen, frames))


def search_predict(run: AbstractRun) -> Program:
    """Return the answers of `calce search` to a batch of queries about encoded segments."""
    limit = SEARCH_ANSWER_TOKENS[run.config.data.dataset]
    config = step_config(run.config, limit, run.grammar(TRAINED_DURATION[run.config.data.dataset]))
    frames = run.prediction_batch.frames
    features = jax.eval_shape(make_encode_video(run.graph), run.trainable, run.frozen, frames)
    features = run.on_batch_axes(features)
    # Its rows have frames without pixels.
    unread = jax.ShapeDtypeStruct((*frames.shape[:2], 0, 0, 3), frames.dtype, sharding=frames.sharding)
    batch = dataclasses.replace(run.prediction_batch, frames=unread)
    predict = jax.jit(make_predict_from_features(run.graph, config))
    return Program(predict, (run.trainable, run.frozen, features, batch), decoding_steps=limit)


def _window_if_grouped(run: AbstractRun, batch: Batch) -> Any:
    return run.window(batch) if run.is_grouped else None


KINDS = ("train", "infer")
# In the order in which a run comes to them.
GROUPING: dict[str, Callable[[AbstractRun], Program]] = {
    f"{name}_{part.__name__}": lambda run, part=part, batch=batch: part(run, getattr(run, batch))
    for name, batch in zip(KINDS, ("training_batch", "prediction_batch"), strict=True)
    for part in (encode, stack, gather)
}
PROGRAMS: dict[str, Callable[[AbstractRun], Program]] = GROUPING | {
    program.__name__: program for program in (train_step, infer_predict, search_encode, search_predict)
}


def program_names(config: RunConfig) -> Sequence[str]:
    """Return the names of the programs of a run, of those in `PROGRAMS`, each program once.

    Where batches of training and of prediction have one size, both are grouped by the same programs.
    """
    kinds = () if config.data.group == 1 else ("infer",) if config.data.batch == config.data.eval_batch else KINDS
    return [name for name in PROGRAMS if name not in GROUPING or name.startswith(kinds)]
