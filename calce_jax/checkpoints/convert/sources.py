"""Sources of a conversion: checkpoints of several formats, which together fill a model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert import bert, blip2, calce, t5, vit, whisper
from calce_jax.checkpoints.convert.formats import SOURCE_FORMATS
from calce_jax.checkpoints.convert.mapping import KeyMapping, add_prefix, mapping_rows
from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.state_dict import (
    WEIGHT_DTYPES,
    ArraySpec,
    ConversionError,
    LazyArray,
    lazy_params,
    matches_any,
)
from calce_jax.checkpoints.convert.weights import Weights, as_lazy, base_param_shapes, trainable_param_shapes
from calce_jax.checkpoints.manager import CheckpointError, Checkpoints
from calce_jax.checkpoints.workdir import TRAINED_FILE
from calce_jax.config import packaged_path, read_config
from calce_jax.distributed.devices import find_devices
from calce_jax.distributed.param_names import named_leaves
from calce_jax.errors import UserFileNotFoundError
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.layers import Linear
from calce_jax.models.whisper import Whisper, WhisperConfig
from calce_jax.storage.text_files import read_text


@dataclass(frozen=True)
class SourceFormat:
    """How to read a format of `SOURCE_FORMATS`.

    Attributes:
      mapping: returns its rows for a Q-Former's `cross_attention_frequency`.
      is_trained: whether it holds what CALCE trains, and not the base weights.
      position_embedding: name of the vision tower's position embedding, which is interpolated to the model's grid.
    """

    mapping: Callable[[int], KeyMapping]
    is_trained: bool = False
    position_embedding: str | None = None


FORMATS: dict[str, SourceFormat] = {
    "lavis": SourceFormat(blip2.lavis_mapping),
    "eva": SourceFormat(lambda _: add_prefix(vit.KEY_MAPPING, flax_prefix="vit/"), position_embedding="pos_embed"),
    "t5": SourceFormat(lambda _: add_prefix(t5.key_mapping(lora=False), flax_prefix="t5/")),
    "bert": SourceFormat(lambda _: bert.key_mapping()),
    "hf": SourceFormat(blip2.hf_mapping, position_embedding="vision_model.embeddings.position_embedding"),
    "calce": SourceFormat(lambda _: calce.checkpoint_mapping(), is_trained=True),
    "mrblip": SourceFormat(lambda _: calce.checkpoint_mapping(query_proj=False), is_trained=True),
}
NATIVE_FORMATS = ("base", "orbax")


def open_sources(sources: Sequence[tuple[str, Path]], model_config: CalceConfig, *, seed: int = 0) -> Weights:
    """Open checkpoints and check that together they fill a model; later sources override earlier ones.

    Only names, shapes and dtypes are read at once; weights are read on demand. `query_proj`, which exists only in
    CALCE, is initialised at random if no source has it.

    Args:
      sources: (format, path) pairs.
      model_config: of the model.
      seed: of the initialisation of `query_proj`.

    Raises:
      WeightsFileError: a file is missing or damaged.
      CheckpointError: a run is damaged, or of another size.
      ConversionError: names, shapes or dtypes do not fit, or weights are missing; lists the problems of all sources.
    """
    base_spec, trained_spec = base_param_shapes(model_config), trainable_param_shapes(model_config)
    base: dict[str, LazyArray] = init_query_proj(model_config, seed)
    trained: dict[str, LazyArray] = {}
    base_path, problems = None, []
    for source_format, path in sources:
        try:
            if source_format in NATIVE_FORMATS:
                run = path if source_format == "orbax" else None
                base_path = base_weights_path(path) if run else path
                base |= _check_native(open_tensors(base_path), base_spec)
                trained |= {} if run is None else run_trained_weights(run, trained_spec)
            elif FORMATS[source_format].is_trained:
                trained |= _open_source(source_format, path, model_config, trained_spec)
            else:
                base |= _open_source(source_format, path, model_config, base_spec)
                base_path = None
        except ConversionError as error:
            problems += [f"{source_format}:{path}: {problem}" for problem in error.problems]
    if not problems:
        problems = _describe_missing(base_spec.keys() - base.keys(), model_config)
    if problems:
        raise ConversionError(problems)
    origin = ",".join(f"{source_format}:{path}" for source_format, path in sources)
    return Weights({name: base[name] for name in base_spec}, trained, model_config, origin, base_path)


def open_whisper_weights(folder: Path) -> dict[str, LazyArray]:
    """Open the weights of a Hugging Face Whisper, whose sizes are in its `config.json`.

    Raises:
      WeightsFileError: a file is missing or damaged.
      ConversionError: the weights do not fit the sizes.
    """
    try:
        text = read_text(folder / "config.json", "sizes", "fetch the whole model", WeightsFileError)
        config = WhisperConfig.from_hugging_face(json.loads(text))
    except UserFileNotFoundError as error:
        raise WeightsFileError(error.reason, error.remedy) from error
    except WeightsFileError:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise WeightsFileError(f"{folder / 'config.json'}: {error}", "fetch the whole model again") from error
    model = nnx.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))
    return lazy_params(whisper.KEY_MAPPING, open_tensors(folder), nnx.state(model, nnx.Param))


def base_weights_path(run: Path) -> Path:
    """Return the file of a run's base weights: where its config says, or beside the config.

    Raises:
      ConfigError: `run` is not the workdir of a run.
      WeightsFileError: its config names no base weights, or the file is missing.
    """
    configured_path = read_config(run).weights.base
    if not configured_path:
        raise WeightsFileError(
            f"{run / 'config.json'}: weights.base is empty; the run was trained without base weights to convert"
        )
    for path in (packaged_path(configured_path), run / Path(configured_path).name):
        if path.is_file():
            return path
    raise WeightsFileError(
        f"{run / 'config.json'}: weights.base names {configured_path}, which does not exist", "put the file there"
    )


def run_trained_weights(run: Path, spec: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, LazyArray]:
    """Return the trained weights of a run's best checkpoint, or of its latest if none was scored.

    Args:
      run: the workdir.
      spec: shape and dtype of each trainable weight.

    Returns:
      {} if the run has neither a folder of checkpoints nor `TRAINED_FILE`.

    Raises:
      CheckpointError: that folder is empty, or the checkpoint is damaged or of another size.
    """
    if not (run / "checkpoints").is_dir():
        trained_file = run / TRAINED_FILE
        return _check_native(open_tensors(trained_file), spec) if trained_file.is_file() else {}
    checkpoints = Checkpoints(run, read_only=True)
    try:
        step = checkpoints.best_step_and_metric[0] if checkpoints.best_step_and_metric else checkpoints.latest_step
        if step is None:
            raise CheckpointError(
                f"no checkpoint in {checkpoints.folder}", "give the workdir of a run that has saved one"
            )
        sharding = jax.sharding.SingleDeviceSharding(find_devices()[0])
        abstract = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for name, leaf in spec.items()
        }
        trained = checkpoints.restore_trainable(step, abstract)
        return {name: as_lazy(np.asarray(leaf)) for name, leaf in trained.items()}
    finally:
        checkpoints.close()


def init_query_proj(model_config: CalceConfig, seed: int) -> dict[str, LazyArray]:
    """Return `query_proj` with random weights; only checkpoints of CALCE have it."""
    layer = Linear(model_config.qformer.query_tokens, model_config.compressed_query_tokens, rngs=nnx.Rngs(seed))
    return {f"query_proj/{name}": as_lazy(np.asarray(leaf)) for name, leaf in named_leaves(nnx.state(layer)).items()}


def _open_source(
    source_format: str, path: Path, model_config: CalceConfig, spec: Mapping[str, ArraySpec]
) -> dict[str, LazyArray]:
    mapping = FORMATS[source_format].mapping(model_config.qformer.cross_attention_frequency)
    tensors = open_tensors(path)
    if not matches_any(mapping, tensors):
        examples = ", ".join(list(tensors)[:3])
        raise ConversionError(
            [
                f"this is not {SOURCE_FORMATS[source_format]}: none of its {len(tensors)} tensors ({examples}, ...) "
                "has a name of that format"
            ]
        )
    position_name = FORMATS[source_format].position_embedding
    if position_name in tensors:
        tensors[position_name] = _resize_positions(tensors[position_name], model_config.vit.grid_size)
    param_names = {param for row in mapping_rows(mapping) for param in row.param_names}
    return lazy_params(mapping, tensors, {name: leaf for name, leaf in spec.items() if name in param_names})


def _resize_positions(positions: LazyArray, grid: int) -> LazyArray:
    """Interpolate a position embedding (1, 1 + P, D) to a grid of grid * grid patches."""
    if len(positions.shape) != 3 or positions.shape[1] == 1 + grid**2:
        return positions
    shape = (positions.shape[0], 1 + grid**2, positions.shape[2])
    return LazyArray(shape, positions.dtype, lambda: vit.interpolate_positions(positions.read()[0], grid)[None])


def _check_native(tensors: Mapping[str, LazyArray], spec: Mapping[str, ArraySpec]) -> dict[str, LazyArray]:
    """Check names, shapes and dtypes of tensors with Flax names, and return them."""
    problems = [f"{name} {tensors[name].shape}: the model has no such weight" for name in tensors.keys() - spec.keys()]
    problems += [f"{name} {tuple(leaf.shape)}: missing" for name, leaf in spec.items() if name not in tensors]
    for name in spec.keys() & tensors.keys():
        tensor, expected_shape = tensors[name], tuple(spec[name].shape)
        if tensor.shape != expected_shape:
            problems.append(f"{name}: has shape {tensor.shape}, the model needs {expected_shape}")
        elif tensor.dtype not in WEIGHT_DTYPES:
            problems.append(f"{name}: has dtype {tensor.dtype}, which is not a dtype of weights")
    if problems:
        raise ConversionError(sorted(problems))
    return dict(tensors)


def _describe_missing(names: set[str], model_config: CalceConfig) -> list[str]:
    """Return a message for each missing weight, with the formats that have it."""
    frequency = model_config.qformer.cross_attention_frequency
    params_by_format = {
        name: {param for row in mapping_rows(source_format.mapping(frequency)) for param in row.param_names}
        for name, source_format in FORMATS.items()
        if not source_format.is_trained
    }
    messages = []
    for param in sorted(names):
        formats = " or ".join(f"{name}:PATH" for name, params in params_by_format.items() if param in params)
        messages.append(f"{param}: in no source; add {formats}")
    return messages
