"""One run put together: the workdir, the model on its devices, the programs, the loop."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from absl import logging
from flax import nnx
from jax.sharding import Mesh

from calce_jax.checkpoints import (
    CheckpointError,
    Checkpoints,
    Start,
    file_hash,
    git_revision,
    load_params,
    starting_point,
)
from calce_jax.hosts import is_first, one_writer, this_host
from calce_jax.models.calce import Calce, CalceConfig, Selection, count, split
from calce_jax.outputs import write_output
from calce_jax.paths import named_leaves, with_leaves
from calce_jax.sharding import abstract_like, make_mesh, shard_params
from calce_jax.step import StepConfig, compile_predict, compile_train_step, make_predict, make_train_step
from calce_jax.training.config import ConfigError, RunConfig, differences, flat, plain
from calce_jax.training.grouping import Grouped, Grouper, in_groups, in_order, predict_all
from calce_jax.training.loop import Plan, train
from calce_jax.training.material import Material
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import TrainState, new_state
from calce_jax.training.writer import open_writer


def train_run(config: RunConfig, workdir: Path, material: Material) -> TrainState:
    """Train, evaluate and save, from wherever the workdir stands, to the end of the schedule.

    Raises:
      LockError: another process trains in this workdir (`train.lock` there).
      ConfigError: the workdir belongs to another config.
      CheckpointError: weights or checkpoints are missing, damaged or of another size, or cannot be written.
      ShardingError: the batch or the model does not fit the mesh.
      TrainingError: the loss is not a number.
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
        writer.write_hparams(dict(flat(plain(config))))
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
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path} is no JSON ({error}); restore it, or choose another --workdir") from error
        if listed := differences(there, plain(config)):
            raise ConfigError(
                f"the workdir {workdir} belongs to another config; choose another --workdir, or the values it was "
                "made with:\n  " + "\n  ".join(listed)
            )
    if is_first():
        write_output(path, json.dumps(plain(config), indent=2) + "\n")


def make_record(config: RunConfig, start: Start) -> dict[str, Any]:
    """Return what is kept with every checkpoint: enough to load it, and to know what made it."""
    base = config.weights.base
    return {
        "config": plain(config),
        "lora": {"rank": config.lora.rank, "alpha": config.lora.alpha},
        "base": {"file": base, "sha256": file_hash(Path(base))} if base else None,
        "start": {"kind": start.kind, "path": str(start.path)},
        "git": git_revision(),
        "jax": jax.__version__,
    }


def step_config(config: RunConfig, answer_tokens: int) -> StepConfig:
    """Return what the two programs need to know; answers may have `answer_tokens`."""
    return StepConfig(
        selection=Selection(
            stage=config.stage,
            mode=config.keyframes.mode,
            clusters=config.keyframes.clusters,
            dilation=config.keyframes.bias1,
            filter_dilation=config.keyframes.bias2,
            behaviour=config.behaviour,
        ),
        buckets=config.text.buckets,
        remat=config.model.remat,
        beams=config.generation.beams,
        answer_length=answer_tokens,
    )


def build_model(sizes: CalceConfig, config: RunConfig, mesh: Mesh) -> tuple[Any, nnx.State, nnx.State]:
    """Make the model on the mesh: structure, trainables (float32), frozen weights (`config.model.frozen_dtype`).

    With base weights only the adapters are drawn at random; the file holds the model as it is without adapters.
    """

    def make() -> tuple[nnx.State, nnx.State]:
        model = Calce(sizes, rngs=nnx.Rngs(config.seed))
        return split(model, config.model.frozen_dtype)[1:]

    graph = nnx.graphdef(nnx.eval_shape(lambda: Calce(sizes, rngs=nnx.Rngs(config.seed))))
    abstract = jax.eval_shape(make)
    shardings = shard_params(abstract, mesh)
    if not config.weights.base:
        return graph, *jax.jit(make, out_shardings=shardings)()

    drawn = jax.jit(lambda: make()[0], out_shardings=shardings[0])()
    places = named_leaves(abstract_like(abstract, shardings))
    in_file = {name: _name_in_base(name) for name in places if name.split("/")[-1] not in ("a", "b")}
    loaded = load_params(Path(config.weights.base), {base: places[name] for name, base in in_file.items()})
    weights = {f"0/{name}": leaf for name, leaf in named_leaves(drawn).items()}
    weights |= {name: loaded[base] for name, base in in_file.items()}
    return graph, *with_leaves(abstract, weights)


def trainables_of(workdir: Path, like: nnx.State, which: Literal["best", "latest"] = "best") -> nnx.State:
    """Return the trainables of another run: the best, or the latest, also where none was scored."""
    return restore_trainables(workdir, like, which)[0]


def restore_trainables(
    workdir: Path, like: nnx.State, which: Literal["best", "latest"] = "best"
) -> tuple[nnx.State, Path]:
    """Return the trainables of another run as `trainables_of` does, and the folder of the checkpoint they are in."""
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best[0] if checkpoints.best and which == "best" else checkpoints.latest
    if step is None:
        raise CheckpointError(f"no checkpoint in {checkpoints.folder}; give the workdir of a run that trained")
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
    try:
        return checkpoints.restore_trainable(step, abstract), checkpoints.folder / str(step)
    finally:
        checkpoints.close()


def check_frozen(base: nnx.State, given: nnx.State, path: Path) -> None:
    """See that another run left `ln_vision` as it is in the base weights, as a run that keeps it frozen wants it.

    Raises:
      ConfigError: it was trained.
    """
    same = jax.jit(lambda *both: jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda a, b: (a == b).all(), *both)))
    if not same(base["ln_vision"], given["ln_vision"]):
        raise ConfigError(
            f"config.weights.start: {path} trained ln_vision, and config.model.ln_vision='frozen' keeps that of "
            "config.weights.base; start from a run that left it frozen, or train it (--config.model.ln_vision=trained)"
        )


def place_state(trainable: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Return the first state, the optimizer's part laid out as the parameters are."""
    make = partial(new_state, optimizer=optimizer)
    shardings = shard_params(jax.eval_shape(make, trainable), mesh)
    return jax.jit(make, out_shardings=shardings)(trainable)


def _name_in_base(name: str) -> str:
    """Return a weight's name in a model without adapters: that of "1/t5/lm_head/base/kernel" is "t5/lm_head/kernel"."""
    return name.split("/", 1)[1].replace("/base/", "/")
