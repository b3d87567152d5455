"""A run that was trained, opened to answer queries."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
from flax import nnx
from jax.sharding import Mesh

from calce_jax.batch import Batch
from calce_jax.checkpoints.restore import build_model, calce_config, restore_trainables
from calce_jax.config import RunConfig, read_config
from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.length_grouping import LengthGrouper, make_batch_predictor
from calce_jax.inference.predict_step import BatchPrediction, compile_predict, make_predict, step_config
from calce_jax.models.calce import CalceConfig
from calce_jax.text.tokenizers import Tokenizers, open_tokenizers


@dataclass(frozen=True)
class TrainedModel:
    """A model with the config it was trained by.

    Fields:
      config: the run's; data fields may have been changed on opening.
      model_config, tokenizers: what the config names.
      mesh: where the weights are.
      graph, trainable, frozen: the model, see `calce_jax.models.calce.split`.
      checkpoint: folder of the checkpoint that the trainables are from; None for base weights.
    """

    config: RunConfig
    model_config: CalceConfig
    tokenizers: Tokenizers
    mesh: Mesh
    graph: Any
    trainable: nnx.State
    frozen: nnx.State
    checkpoint: Path | None = None

    def compile_predictor(self, max_answer_tokens: int) -> Callable[[Iterable[Batch]], Iterator[BatchPrediction]]:
        """Compile the prediction for answers of at most so many tokens; it takes this host's parts of batches."""
        program_config, batches_per_window = step_config(self.config, max_answer_tokens), self.config.data.group
        grouper = LengthGrouper(self.graph, program_config, self.mesh) if batches_per_window > 1 else None
        predict = compile_predict(make_predict(self.graph, program_config), self.mesh)
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
) -> TrainedModel:
    """Open the run in a workdir.

    Args:
      workdir: what `launch/train.py --workdir` wrote.
      checkpoint: its checkpoint.
      data_dir, mesh, use_captions, features: in place of the config's.

    Raises:
      ConfigError: there is no run in the workdir, or its config is damaged.
      CheckpointError: its checkpoint, or the base weights it names, cannot be read.
      TokenizerError: a tokenizer it names is missing.
    """
    config = read_config(workdir)
    data = replace(
        config.data,
        directory=config.data.directory if data_dir is None else data_dir,
        use_captions=config.data.use_captions if use_captions is None else use_captions,
        features=config.data.features if features is None else features,
    )
    base = load_base_model(replace(config, data=data, mesh=config.mesh if mesh is None else mesh))
    with jax.set_mesh(base.mesh):
        trainable, folder = restore_trainables(Path(workdir), base.trainable, checkpoint)
    return replace(base, trainable=trainable, checkpoint=folder)


def load_base_model(config: RunConfig) -> TrainedModel:
    """Open the base weights that a config names as they are, before any training: adapters do nothing at first.

    Raises:
      CheckpointError: the base weights cannot be read.
      TokenizerError: a tokenizer is missing.
    """
    tokenizers = open_tokenizers(config)
    model_config, mesh = (
        calce_config(config, t5_vocab=len(tokenizers.t5), bert_vocab=len(tokenizers.bert)),
        make_mesh(config.mesh),
    )
    with jax.set_mesh(mesh):
        graph, trainable, frozen = build_model(model_config, config, mesh)
    return TrainedModel(config, model_config, tokenizers, mesh, graph, trainable, frozen)
