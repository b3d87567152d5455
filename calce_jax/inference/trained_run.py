"""Loading of trained models and base models."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from calce_jax.batch import Batch
from calce_jax.checkpoints.restore import (
    calce_config,
    check_config,
    check_files,
    load_weights,
    restore_trainables,
)
from calce_jax.config import RunConfig, read_config
from calce_jax.distributed.compiler_options import compiler_options
from calce_jax.distributed.param_names import Params
from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.prediction import BatchPrediction, step_config
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.text.answer_grammar import answer_grammar
from calce_jax.text.prompt import max_answer_tokens
from calce_jax.text.tokenizers import Tokenizers, open_tokenizers


@dataclass(frozen=True)
class TrainedModel:
    """A model on its devices, with the config of its run.

    Fields:
      config: of the run, with the changes that `load_trained_model` was given.
      model_config: sizes of the model.
      tokenizers: of T5 and BERT.
      mesh: of the weights.
      trainable, frozen: its weights, see `calce_jax.models.structure.split_params`.
      checkpoint: folder of the checkpoint of the trainables; None for base weights.
      trained_with_items: whether its training queries had items; if not, the line of the prompt stays empty.
    """

    config: RunConfig
    model_config: CalceConfig
    tokenizers: Tokenizers
    mesh: Mesh
    trainable: Params
    frozen: Params
    checkpoint: Path | None = None
    trained_with_items: bool = True

    @cached_property
    def graph(self) -> Any:
        """The structure of the model, of which `nnx.merge(graph, trainable, frozen)` makes a `Calce`."""
        from calce_jax.models.structure import trace_model  # noqa: PLC0415  (imports flax: see `abstract_params`)

        return trace_model(self.model_config, self.config.model.frozen_dtype)[0]

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """`compiler_options` of `jax.jit` for the programs of the model."""
        return compiler_options(self.mesh, self.config.model.frozen_dtype)

    def compile_predictor(self, max_duration: float) -> Callable[[Iterable[Batch]], Iterator[BatchPrediction]]:
        """Return a function that predicts batch after batch, compiled on its first call.

        Args:
          max_duration: of all videos, in seconds; it limits the length of answers.

        Returns:
          `run(batches)`, which takes this host's parts of batches, and yields the predictions of all hosts as numpy
          arrays, in input order.
        """
        # Programs of the model import flax: a search that finds its own in a cache does without.
        from calce_jax.inference.length_grouping import LengthGrouper, make_batch_predictor  # noqa: PLC0415
        from calce_jax.inference.predict_step import compile_predict, make_predict  # noqa: PLC0415

        config, t5 = self.config, self.tokenizers.t5
        max_tokens = max_answer_tokens(t5, max_duration, config.behaviour)
        program_config = step_config(config, max_tokens, answer_grammar(config, t5, max_duration))
        batches_per_window, options = config.data.group, self.compiler_options
        grouper = LengthGrouper(self.graph, program_config, self.mesh, options) if batches_per_window > 1 else None
        predict = compile_predict(make_predict(self.graph, program_config), self.mesh, options)
        predict_batches = make_batch_predictor(predict, self.mesh, grouper, batches_per_window)

        def run(batches: Iterable[Batch]) -> Iterator[BatchPrediction]:
            predictions = predict_batches(self.trainable, self.frozen, batches)
            while True:
                with jax.set_mesh(self.mesh):
                    prediction = next(predictions, None)
                if prediction is None:
                    return
                yield prediction

        return run


def load_trained_model(
    workdir: str | Path,
    *,
    checkpoint: Literal["best", "latest"] = "best",
    data_dir: str | None = None,
    mesh: str | None = None,
    use_captions: bool | None = None,
    features: str | None = None,
    batch: int | None = None,
    group: int | None = None,
    programs: ProgramCache | None = None,
    other_stage: TrainedModel | None = None,
) -> TrainedModel:
    """Load the model of a workdir.

    Args:
      workdir: what `calce train --workdir` wrote.
      checkpoint: "best" by R1_avg, or "latest".
      data_dir, mesh, use_captions, features, batch, group: replace `config.data.directory`, `config.mesh`,
        `config.data.use_captions`, `config.data.features`, `config.data.eval_batch` and `config.data.group`, unless
        None. No prediction depends on the last two, memory and time do.
      programs: has the structure of the model, if it was opened before.
      other_stage: a model that is loaded on the same mesh; frozen weights that are the same are not loaded twice.

    Raises:
      ConfigError: the workdir has no config, a damaged one, or another than its checkpoint records.
      CheckpointError: its checkpoint, or the base weights of its config, cannot be read, or do not belong together.
      TokenizerError: a tokenizer of its config is missing.
    """
    config = read_config(workdir)
    data = replace(
        config.data,
        directory=config.data.directory if data_dir is None else data_dir,
        use_captions=config.data.use_captions if use_captions is None else use_captions,
        features=config.data.features if features is None else features,
        group=config.data.group if group is None else group,
    )
    changed = replace(config, data=data, mesh=config.mesh if mesh is None else mesh)
    changed = with_eval_batch(changed, batch)
    model = _load(changed, with_trainables=False, programs=programs, other_stage=other_stage)
    with jax.set_mesh(model.mesh):
        trainable, folder, metadata = restore_trainables(Path(workdir), model.trainable, checkpoint)
    check_config(folder, metadata, config)
    check_files(folder, metadata, config)
    with_items = bool(metadata.get("trained_with_items", True))  # earlier versions did not record it
    return replace(model, trainable=trainable, checkpoint=folder, trained_with_items=with_items)


def with_eval_batch(config: RunConfig, batch: int | None) -> RunConfig:
    """Return a config with another number of queries of a batch of predictions, unless it is None."""
    return config if batch is None else replace(config, data=replace(config.data, eval_batch=batch))


def load_base_model(
    config: RunConfig, programs: ProgramCache | None = None, other_stage: TrainedModel | None = None
) -> TrainedModel:
    """Load the base weights of a config, before any training; new adapters do not change the model's output.

    Args:
      config: of a run; base weights are random if it names none.
      programs: has the structure of the model, if it was opened before.
      other_stage: as for `load_trained_model`.

    Raises:
      CheckpointError: the base weights cannot be read.
      TokenizerError: a tokenizer is missing.
    """
    return _load(config, with_trainables=True, programs=programs, other_stage=other_stage)


def _load(
    config: RunConfig, *, with_trainables: bool, programs: ProgramCache | None, other_stage: TrainedModel | None
) -> TrainedModel:
    tokenizers = open_tokenizers(config, programs)
    model_config = calce_config(config, t5_vocab=len(tokenizers.t5), bert_vocab=len(tokenizers.bert))
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        trainable, frozen = load_weights(
            model_config,
            config,
            mesh,
            with_trainables=with_trainables,
            adapters="zero",
            programs=programs,
            shared_frozen=other_stage.frozen if other_stage and _has_same_frozen(other_stage.config, config) else None,
        )
    return TrainedModel(config, model_config, tokenizers, mesh, trainable, frozen)


def _has_same_frozen(config: RunConfig, other: RunConfig) -> bool:
    """Return whether two runs have the same frozen weights; without base weights they are drawn by the seed."""
    drawn_by = [None if run.weights.base else run.seed for run in (config, other)]
    same = (config.model, config.mesh, config.weights.base) == (other.model, other.mesh, other.weights.base)
    return same and drawn_by[0] == drawn_by[1]
