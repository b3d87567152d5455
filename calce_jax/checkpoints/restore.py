"""The model of a run: its sizes, its weights on a mesh, and the trainables of another run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from calce_jax.checkpoints.params_file import CheckpointError, load_params, read_record
from calce_jax.checkpoints.workdir import TRAINED_FILE, checkpoint_steps
from calce_jax.config import PATH_FIELDS, ConfigError, RunConfig, diff, flatten, packaged_path, to_dict
from calce_jax.config_compat import SAME_WEIGHTS, upgrade_config
from calce_jax.distributed.param_names import Params, named_leaves, with_leaves
from calce_jax.distributed.sharding import abstract_like, param_shardings
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.storage.provenance import file_hash
from calce_jax.storage.verification import verification_enabled
from calce_jax.text.tokenizers import tokenizer_hashes


def calce_config(config: RunConfig, *, t5_vocab: int, bert_vocab: int) -> CalceConfig:
    """Return the sizes of the model of a run.

    Args:
      config: of the run.
      t5_vocab, bert_vocab: sizes of the tokenizers' vocabularies; only the tiny model's embeddings depend on them.
    """
    model_config = CalceConfig.from_name(
        config.model.size, config.lora, config.model.compute_dtype, t5_vocab=t5_vocab, bert_vocab=bert_vocab
    )
    return replace(model_config.with_attention(config.model.attention), ln_vision=config.model.ln_vision)


def load_weights(
    model_config: CalceConfig,
    config: RunConfig,
    mesh: Mesh,
    *,
    with_trainables: bool = True,
    adapters: Literal["random", "zero"] = "random",
    programs: ProgramCache | None = None,
    shared_frozen: Params | None = None,
) -> tuple[Params, Params]:
    """Load or draw the weights of a model on a mesh; the graph of the model is that of `trace_model`.

    With base weights only the adapters are initialised; the file holds the model without adapters.

    Args:
      model_config: sizes of the model.
      config: of the run.
      mesh: from `make_mesh`.
      with_trainables: False returns the shapes of trainables with their shardings, to be restored from a checkpoint.
      adapters: "zero" beside base weights saves compiling a program that draws them; they cannot be trained. The output
        of the model is the same: one factor of a new adapter is zero in any case.
      programs: has the shapes of the weights, so that the model is not traced.
      shared_frozen: the frozen weights, if they are there already; they are not read again.

    Returns:
      The trainables (float32) and the frozen weights (`config.model.frozen_dtype`).

    Raises:
      CheckpointError: the base weights cannot be read, or are of another size.
      ShardingError: the parameters do not fit the mesh.
    """

    def init(key: PRNGKeyArray) -> tuple[Params, Params]:
        from calce_jax.models.structure import draw_params  # noqa: PLC0415  (see `abstract_params`)

        return draw_params(model_config, config.model.frozen_dtype, key)

    def draw(program: Callable[[PRNGKeyArray], Any], shardings: Any) -> Any:
        # An argument of the compiled program, not a constant in it: runs with other seeds find it in the compilation
        # cache. Made only here: it takes two small programs of JAX's own, which a search of trained weights can spare.
        return jax.jit(program, out_shardings=shardings)(jax.random.key(config.seed))

    abstract = abstract_params(model_config, config.model.frozen_dtype, programs)
    shardings = param_shardings(abstract, mesh)
    trainable, frozen = abstract_like(abstract, shardings)
    if not config.weights.base:
        if with_trainables and shared_frozen is None:
            return draw(init, shardings)
        if with_trainables:
            trainable = draw(lambda key: init(key)[0], shardings[0])
        if shared_frozen is not None:
            return trainable, shared_frozen
        return trainable, draw(lambda key: init(key)[1], shardings[1])

    abstract_leaves = named_leaves((trainable, frozen))
    base_names = {name: _base_weight_name(name) for name in abstract_leaves if name.split("/")[-1] not in ("a", "b")}
    loaded = load_params(
        packaged_path(config.weights.base),
        {base: abstract_leaves[name] for name, base in base_names.items()},
        skipped={base for name, base in base_names.items() if shared_frozen is not None and name.startswith("1/")},
    )
    weights = {name: loaded[base] for name, base in base_names.items()}
    if with_trainables:
        if adapters == "zero":
            missing = {name: leaf for name, leaf in named_leaves(trainable).items() if f"0/{name}" not in weights}
            initialized = {
                name: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding) for name, leaf in missing.items()
            }
        else:
            initialized = named_leaves(draw(lambda key: init(key)[0], shardings[0]))
        trainable = with_leaves(trainable, initialized | _under("0/", weights))
    return trainable, with_leaves(frozen, _under("1/", weights)) if shared_frozen is None else shared_frozen


def abstract_params(
    model_config: CalceConfig, frozen_dtype: str, programs: ProgramCache | None = None
) -> tuple[Params, Params]:
    """Return the shapes of the trainables and of the frozen weights of a model.

    The classes of the model, and flax, are imported to trace it: a process that finds the shapes, and its programs, in
    a cache does without.
    """

    def trace() -> tuple[Params, Params]:
        from calce_jax.models.structure import trace_model  # noqa: PLC0415

        return trace_model(model_config, frozen_dtype)[1]

    return programs.recall("shapes", (model_config, frozen_dtype), trace) if programs else trace()


def _under(prefix: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves whose names have a prefix, without it."""
    return {name.removeprefix(prefix): leaf for name, leaf in leaves.items() if name.startswith(prefix)}


def load_trainable(workdir: Path, template: Params, checkpoint: Literal["best", "latest"] = "best") -> Params:
    """Return the trainables of a run, see `restore_trainables`."""
    return restore_trainables(workdir, template, checkpoint)[0]


def restore_trainables(
    workdir: Path, template: Params, checkpoint: Literal["best", "latest"] = "best"
) -> tuple[Params, Path, dict[str, Any]]:
    """Return the trainables of a run, the folder or file of their checkpoint, and its metadata.

    Args:
      workdir: of the run; one without checkpoints may have `TRAINED_FILE` in their place.
      template: trainables of the same shapes, with the shardings to restore into.
      checkpoint: "best" by R1_avg; the latest if none was evaluated.

    Raises:
      CheckpointError: there is no checkpoint; or as for `Checkpoints.restore`.
    """
    trained_file = workdir / TRAINED_FILE
    if trained_file.is_file() and not checkpoint_steps(workdir):
        return load_params(trained_file, template), trained_file, read_record(trained_file)
    # Orbax takes long to import; model folders and base weights do without.
    from calce_jax.checkpoints.manager import Checkpoints  # noqa: PLC0415

    checkpoints = Checkpoints(workdir, read_only=True)
    best = checkpoints.best_step_and_metric
    step = best[0] if best and checkpoint == "best" else checkpoints.latest_step
    if step is None:
        raise CheckpointError(f"no checkpoint in {checkpoints.folder}", "give the workdir of a trained run")
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), template)
    try:
        trainable = checkpoints.restore_trainable(step, abstract)
        return trainable, checkpoints.folder / str(step), checkpoints.read_metadata(step)
    finally:
        checkpoints.close()


def check_files(checkpoint: Path, metadata: Mapping[str, Any], config: RunConfig) -> None:
    """Check that base weights and tokenizers are those that a run was trained with; hashes them, 1.6 GB/s on one core.

    Args:
      checkpoint: folder of the checkpoint, for the message.
      metadata: of the checkpoint; those of earlier versions have no tokenizers.
      config: of the run, which names the files.

    Raises:
      CheckpointError: a file has another SHA-256 than the checkpoint records.
    """
    recorded_hashes = metadata.get("tokenizers") or {}
    for field, actual in tokenizer_hashes(config).items() if verification_enabled() else ():
        recorded = recorded_hashes.get(field)
        if actual and recorded and actual != recorded:
            path = dict(flatten(to_dict(config)))[field]
            raise CheckpointError(
                f"config.{field}: the vocabulary in {path} is not the one that {checkpoint} was trained with",
                "put its files back (--verify=off takes these)",
            )
    base, recorded = config.weights.base, (metadata.get("base") or {}).get("sha256")
    if not base or not recorded or not verification_enabled():
        return
    actual = file_hash(packaged_path(base))
    if actual not in (recorded, SAME_WEIGHTS.get(recorded)):
        raise CheckpointError(
            f"config.weights.base: {base} is not the file that {checkpoint} was trained with (its SHA-256 is "
            f"{actual[:12]}..., {recorded[:12]}... is recorded)",
            "put that file back (--verify=off takes this one)",
        )


def check_config(checkpoint: Path, metadata: Mapping[str, Any], config: RunConfig) -> None:
    """Check that config.json of a workdir is the config that its checkpoint records, except for paths and added epochs.

    Args:
      checkpoint: folder or file of the checkpoint, for the message.
      metadata: of the checkpoint.
      config: from config.json.

    Raises:
      ConfigError: lists the fields that differ.
    """
    if "config" not in metadata or not verification_enabled():
        return
    recorded, current = upgrade_config(metadata["config"]), to_dict(config)
    schedule = recorded.get("schedule", {})
    # A run that was finished may go on with more epochs; its best checkpoint may be from before.
    if schedule.get("epochs", 0) < config.schedule.epochs:
        recorded = {**recorded, "schedule": {**schedule, "epochs": config.schedule.epochs}}
    differences = diff(recorded, current)
    if mismatches := [line for line in differences if not line.startswith(PATH_FIELDS)]:
        is_file = checkpoint.name == TRAINED_FILE
        workdir, record = (
            (checkpoint.parent, "the header") if is_file else (checkpoint.parents[1], f"{checkpoint}/record/metadata")
        )
        raise ConfigError(
            f"{workdir / 'config.json'} is not the config of {checkpoint}",
            f'restore it from "config" in {record} (--verify=off takes it as it is):\n  ' + "\n  ".join(mismatches),
        )


def check_ln_vision_frozen(base: Params, other_trainable: Params, path: Path) -> None:
    """Check that another run did not train `ln_vision`, for a run that keeps it frozen.

    Args:
      base: trainables of this run, initialised from its base weights.
      other_trainable: trainables of the other run.
      path: workdir of the other run, for the message.

    Raises:
      ConfigError: `ln_vision` differs from the base weights.
    """
    all_equal = jax.jit(
        lambda *trees: jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda a, b: (a == b).all(), *trees))
    )
    if not all_equal(base["ln_vision"], other_trainable["ln_vision"]):
        raise ConfigError(
            f"config.weights.start: {path} trained ln_vision, and config.model.ln_vision='frozen' keeps that of "
            "config.weights.base",
            "start from a run that left it frozen, or train it (--config.model.ln_vision=trained)",
        )


def _base_weight_name(name: str) -> str:
    """Return the name in a model without adapters: "1/t5/lm_head/base/kernel" becomes "t5/lm_head/kernel"."""
    return name.split("/", 1)[1].replace("/base/", "/")
