"""One run put together: the workdir, the model on its devices, the programs, the loop."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from calce_jax.checkpoints.manager import Checkpoints, Start, starting_point
from calce_jax.checkpoints.restore import build_model, check_frozen, trainables_of
from calce_jax.config import ConfigError, RunConfig, differences, flat, packaged_path, read_config_json, to_dict
from calce_jax.distributed.multihost import is_first, one_writer, this_host
from calce_jax.distributed.sharding import make_mesh, shard_params
from calce_jax.inference.length_grouping import Grouper, predict_all
from calce_jax.inference.predict_step import compile_predict, make_predict, step_config
from calce_jax.models.calce import count
from calce_jax.storage.atomic_files import write_output
from calce_jax.storage.provenance import file_hash, git_revision
from calce_jax.training.feed import Grouped, in_groups, in_order
from calce_jax.training.loop import Plan, train
from calce_jax.training.metric_writer import open_writer
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.run_data import Material
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import TrainState, new_state
from calce_jax.training.train_step import compile_train_step, make_train_step


def train_run(config: RunConfig, workdir: Path, material: Material) -> TrainState:
    """Train, evaluate and save, from wherever the workdir stands, to the end of the schedule.

    Raises:
      LockError: another process trains in this workdir (`train.lock` there).
      ConfigError: the workdir belongs to another config.
      CheckpointError: weights or checkpoints are missing, damaged, not finite or of another size, or cannot be written.
      ShardingError: the batch or the model does not fit the mesh.
      TrainingError: several steps in a row had a loss or a gradient that is not finite.
      SystemExit: with code 0, after SIGTERM and a checkpoint.
    """
    with one_writer(Path(workdir) / "train.lock"):
        return _train_run(config, workdir, material)


def _train_run(config: RunConfig, workdir: Path, material: Material) -> TrainState:
    # 1. The workdir, and where the weights come from.
    claim_workdir(workdir, config)
    start = starting_point(workdir, config.weights.start, config.weights.base)
    mesh = make_mesh(config.mesh)
    checkpoints = Checkpoints(workdir)

    with jax.set_mesh(mesh), open_writer(workdir) as writer:
        # 2. The model: frozen weights and trainables, on their devices.
        graph, trainable, frozen = build_model(material.sizes, config, mesh)
        logging.info("%d parameters are trainable, %d are frozen", count(trainable), count(frozen))
        if start.kind == "given" and start.path:
            given = trainables_of(start.path, trainable)
            if config.model.ln_vision == "frozen":
                check_frozen(trainable, given, start.path)
            trainable = given

        # 3. The data, and the optimizer and its state; all of it anew from the checkpoint when this run goes on.
        steps_per_epoch, programs = material.steps_per_epoch, step_config(config, material.answer_tokens)
        grouper = Grouper(graph, programs, mesh) if config.data.group > 1 else None
        feed = in_order(material.iterator, mesh)
        if grouper is not None:
            feed = in_groups(
                Grouped(
                    material.iterator,
                    grouper,
                    frozen,
                    window=config.data.group,
                    epoch=steps_per_epoch,
                    seed=config.seed,
                    **this_host(),
                )
            )
        optimizer = make_optimizer(config.optimizer, config.behaviour)
        state = place_state(trainable, optimizer, mesh)
        if start.kind == "resumed" and checkpoints.latest is not None:
            abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
            state = checkpoints.restore(checkpoints.latest, abstract, feed.iterator)
        logging.info("%s start at step %d from %s", start.kind, int(state.step), start.path or "a random model")

        # 4. The two programs.
        rate = partial(
            learning_rate,
            steps_per_epoch=steps_per_epoch,
            epochs=config.schedule.epochs,
            peak=config.schedule.peak,
            floor=config.schedule.floor,
            warmup_from=config.schedule.warmup_from,
            warmup_steps=config.schedule.warmup_steps,
            behaviour=config.behaviour,
            first_epoch=int(state.step) // steps_per_epoch,
        )
        step = compile_train_step(make_train_step(graph, programs, optimizer, rate), state)
        predict = predict_all(compile_predict(make_predict(graph, programs), mesh), mesh, grouper, config.data.group)
        key = jax.random.key(config.seed)

        # 5. The loop.
        writer.write_hparams(dict(flat(to_dict(config))))
        try:
            return train(
                state,
                feed.iterator,
                feed.draw,
                plan=Plan(steps_per_epoch, config.schedule.epochs, config.loop.log_every, config.loop.eval_every),
                step_fn=lambda state, batch: step(state, frozen, batch, key),
                evaluate=lambda state: material.evaluate(partial(predict, state.trainable, frozen)),
                checkpoints=checkpoints,
                record=make_record(config, start),
                writer=writer,
                queries=material.query_ids,
            )
        finally:
            checkpoints.close()


def claim_workdir(workdir: Path, config: RunConfig) -> None:
    """Write the config into a new workdir; in one that has a config, see that it is the same but for harmless fields.

    Raises:
      ConfigError: lists the fields that differ.
    """
    path = Path(workdir) / "config.json"
    if path.exists() and (listed := differences(read_config_json(workdir), to_dict(config))):
        raise ConfigError(
            f"the workdir {workdir} belongs to another config; choose another --workdir, or the values it was "
            "made with:\n  " + "\n  ".join(listed)
        )
    if is_first():
        write_output(path, json.dumps(to_dict(config), indent=2) + "\n")


def make_record(config: RunConfig, start: Start) -> dict[str, Any]:
    """Return what is kept with every checkpoint: enough to load it, and to know what made it."""
    base = config.weights.base
    return {
        "config": to_dict(config),
        "lora": {"rank": config.lora.rank, "alpha": config.lora.alpha},
        "base": {"file": base, "sha256": file_hash(packaged_path(base))} if base else None,
        "start": {"kind": start.kind, "path": str(start.path)},
        "git": git_revision(),
        "jax": jax.__version__,
    }


def place_state(trainable: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the first state, the optimizer's part laid out as the parameters are."""
    make = partial(new_state, optimizer=optimizer)
    shardings = shard_params(jax.eval_shape(make, trainable), mesh)
    return jax.jit(make, out_shardings=shardings)(trainable)
