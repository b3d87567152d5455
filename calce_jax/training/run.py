"""A training run: its workdir, the model on its devices, the compiled functions, the loop."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging
from jax.sharding import Mesh

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.restore import check_files, check_ln_vision_frozen, load_trainable, load_weights
from calce_jax.checkpoints.workdir import InitSource, resolve_init
from calce_jax.config import ConfigError, RunConfig, flatten, packaged_path, to_dict
from calce_jax.distributed.compiler_options import compiler_options
from calce_jax.distributed.multihost import one_writer, process_info
from calce_jax.distributed.param_names import Params
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.distributed.sharding import make_mesh, param_shardings
from calce_jax.inference.length_grouping import LengthGrouper, make_batch_predictor
from calce_jax.inference.predict_step import compile_predict, make_predict
from calce_jax.inference.prediction import step_config
from calce_jax.input_pipeline.table_fingerprint import Fingerprint, has_items, table_changes
from calce_jax.models.structure import count_params, trace_model
from calce_jax.storage.provenance import file_hash, git_revision
from calce_jax.text.tokenizers import tokenizer_hashes
from calce_jax.training.console import model_lines, print_lines, result_lines, schedule_lines
from calce_jax.training.feed import LengthGroupedIterator, length_grouped_feed, sequential_feed
from calce_jax.training.loop import RunOutputs, TrainFunctions, TrainSchedule, train
from calce_jax.training.metric_writer import open_metric_writer
from calce_jax.training.objective import check_start, load_reference, make_objective_step
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.patience import Patience
from calce_jax.training.run_data import RunData
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import TrainState, create_train_state
from calce_jax.training.train_step import compile_train_step
from calce_jax.training.utilization import measure_utilization
from calce_jax.training.workdir_config import init_workdir


def train_run(
    config: RunConfig, workdir: Path, run_data: RunData, *, stop_on_signals: bool = False, profile_steps: int = 0
) -> TrainState:
    """Train to the end of the schedule; a workdir with checkpoints is resumed.

    Args:
      config: of the run.
      workdir: gets the config, checkpoints and metrics.
      run_data: from `calce_jax.training.run_data.open_run_data`.
      stop_on_signals: see `calce_jax.training.loop.train`; for commands alone.
      profile_steps: number of steps that are traced to `profile/` in the workdir.

    Raises:
      LockError: another process trains in this workdir (`train.lock` there).
      ConfigError: the workdir was made with another config; or training by rewards starts from no trained run.
      CheckpointError: weights or checkpoints are missing, damaged, not finite or of another size, or cannot be written.
      ShardingError: the batch or the model does not fit the mesh.
      TrainingError: several steps in a row had a loss or a gradient that is not finite.
      SystemExit: after SIGTERM or SIGINT and a checkpoint, see `train`.
    """
    with one_writer(Path(workdir) / "train.lock"):
        profiler = StepProfiler(Path(workdir) / "profile", profile_steps, "train")
        return _train_run(config, workdir, run_data, profiler, stop_on_signals=stop_on_signals)


def _train_run(
    config: RunConfig, workdir: Path, run_data: RunData, profiler: StepProfiler, *, stop_on_signals: bool
) -> TrainState:
    # 1. The workdir, and where the weights come from.
    check_start(config)
    init_workdir(workdir, config, run_data.steps_per_epoch)
    init_source = resolve_init(workdir, config.weights.start, config.weights.base)
    mesh = make_mesh(config.mesh)
    checkpoints = Checkpoints(workdir)

    resumed_step = checkpoints.latest_step if init_source.kind == "resumed" else None
    with jax.set_mesh(mesh), open_metric_writer(workdir, (resumed_step or 0) + 1) as writer:
        # 2. The model: frozen weights and trainables, on their devices.
        trainable, frozen = load_weights(run_data.model_config, config, mesh)
        graph = trace_model(run_data.model_config, config.model.frozen_dtype)[0]
        print_lines(model_lines(config, mesh, count_params(trainable), count_params(frozen)))
        if init_source.kind == "other_run" and init_source.path:
            other_trainable = load_trainable(init_source.path, trainable)
            if config.model.ln_vision == "frozen":
                check_ln_vision_frozen(trainable, other_trainable, init_source.path)
            trainable = other_trainable

        # 3. The data, the optimizer and its state; a resumed run restores all of them from its checkpoint.
        steps_per_epoch = run_data.steps_per_epoch
        program_config = step_config(config, run_data.max_answer_tokens, run_data.grammar)
        options = compiler_options(mesh, config.model.frozen_dtype)
        grouper = LengthGrouper(graph, program_config, mesh, options) if config.data.group > 1 else None
        feed = sequential_feed(run_data.train_iterator, mesh)
        if grouper is not None:
            feed = length_grouped_feed(
                LengthGroupedIterator(
                    run_data.train_iterator,
                    grouper,
                    frozen,
                    batches_per_window=config.data.group,
                    batches_per_epoch=steps_per_epoch,
                    seed=config.seed,
                    **process_info(),
                )
            )
        optimizer = make_optimizer(config.optimizer, config.behaviour)
        state = create_sharded_train_state(trainable, optimizer, mesh)
        metadata: dict[str, Any] = {}
        if resumed_step is not None:
            abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
            metadata = checkpoints.read_metadata(resumed_step)
            check_tables(metadata, run_data.tables, config.data.directory)
            check_files(checkpoints.folder / str(resumed_step), metadata, config)
            state = checkpoints.restore(resumed_step, abstract, feed.iterator)
            print_lines([f"resuming from {checkpoints.folder / str(resumed_step)}"])
        reference, reference_metadata = load_reference(config, trainable, metadata)
        logging.info(
            "%s start at step %d from %s", init_source.kind, int(state.step), init_source.path or "a random model"
        )

        # 4. The compiled functions: training step and prediction.
        learning_rate_fn = partial(
            learning_rate,
            steps_per_epoch=steps_per_epoch,
            epochs=config.schedule.epochs,
            peak=config.schedule.peak,
            floor=config.schedule.floor,
            warmup_from=config.schedule.warmup_from,
            warmup_steps=config.schedule.warmup_steps,
            behaviour=config.behaviour,
            first_step=int(state.step),
        )
        train_step = compile_train_step(
            make_objective_step(
                config, run_data, graph, program_config, optimizer=optimizer, learning_rate=learning_rate_fn
            ),
            state,
            options,
        )
        predict = make_batch_predictor(
            compile_predict(make_predict(graph, program_config), mesh, options), mesh, grouper, config.data.group
        )
        key = jax.random.key(config.seed)

        # 5. The loop.
        writer.write_hparams(dict(flatten(to_dict(config))))
        schedule = TrainSchedule(
            steps_per_epoch,
            config.schedule.epochs,
            config.loop.log_every,
            config.loop.eval_every,
            config.loop.patience,
        )
        is_finished = not metadata.get("evaluation_due") and (
            int(state.step) >= schedule.total_steps
            or Patience.restore(config.loop.patience, checkpoints, metadata).is_over
        )
        print_lines(schedule_lines(config, workdir, schedule, int(state.step), is_finished=is_finished))
        try:
            with profiler:
                state = train(
                    state,
                    feed,
                    schedule,
                    TrainFunctions(
                        train_step=profiler.wrap(lambda state, batch: train_step(state, frozen, batch, key, reference)),
                        evaluate=lambda state: run_data.evaluate(partial(predict, state.trainable, frozen)),
                        query_ids=run_data.query_ids,
                    ),
                    RunOutputs(
                        checkpoints,
                        checkpoint_metadata(config, init_source, run_data.tables) | reference_metadata,
                        writer,
                        measure_utilization(config, run_data.model_config, mesh.devices.flat),
                    ),
                    stop_on_signals=stop_on_signals,
                )
            print_lines(result_lines(config, checkpoints))
            return state
        finally:
            checkpoints.close()


def check_tables(metadata: Mapping[str, Any], tables: Mapping[str, Fingerprint], folder: str) -> None:
    """Check that the tables are those with which a checkpoint was made.

    Args:
      metadata: of the checkpoint; earlier versions recorded no tables.
      tables: fingerprints now.
      folder: the prepared folder, for the message.

    Raises:
      ConfigError: a split has changed; names what.
    """
    before = metadata.get("tables", {})
    changes = {split: table_changes(before[split], now) for split, now in tables.items() if split in before}
    if changes := {split: change for split, change in changes.items() if change}:
        raise ConfigError(
            f"config.data.directory: the tables in {folder} are not those this run was trained on: "
            + "; ".join(f"{split}: {change}" for split, change in changes.items()),
            "restore them, or start another run in another --workdir",
        )


def checkpoint_metadata(
    config: RunConfig, init_source: InitSource, tables: Mapping[str, Fingerprint]
) -> dict[str, Any]:
    """Return the metadata of every checkpoint, JSON values: what is needed to load it, and its provenance."""
    base = config.weights.base
    return {
        "config": to_dict(config),
        "lora": {"rank": config.lora.rank, "alpha": config.lora.alpha},
        "base": {"file": base, "sha256": file_hash(packaged_path(base))} if base else None,
        "tokenizers": tokenizer_hashes(config),
        "start": {"kind": init_source.kind, "path": str(init_source.path)},
        "tables": dict(tables),
        "trained_with_items": has_items(tables.get(config.data.train_split, {})),
        "git": git_revision(),
        "jax": jax.__version__,
    }


def create_sharded_train_state(trainable: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the first state; the optimizer's arrays have the shardings of their parameters."""
    create = partial(create_train_state, optimizer=optimizer)
    shardings = param_shardings(jax.eval_shape(create, trainable), mesh)
    return jax.jit(create, out_shardings=shardings)(trainable)
