"""Where weights come from: `KIND:PATH,KIND:PATH,...`, each a checkpoint that fills some of the model."""

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
from calce_jax.config import packaged_path, read_config
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.calce import CalceConfig
from calce_jax.models.layers import Linear
from calce_jax.models.whisper import Whisper, WhisperConfig


@dataclass(frozen=True)
class SourceFormat:
    """How one format of `SOURCE_FORMATS` is read.

    Attributes:
      mapping: its rows, for a Q-Former in which every so-many-th layer has cross-attention.
      is_trained: whether it holds what CALCE trains, without the base weights.
      position_embedding: the name of the learned positions, which are interpolated where the frames have another size.
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
OWN_FORMATS = ("base", "orbax")


def open_sources(sources: Sequence[tuple[str, Path]], model_config: CalceConfig, *, seed: int = 0) -> Weights:
    """Open checkpoints and check that together they fill a model; later ones take the place of earlier ones.

    Nothing but names, shapes and dtypes is read until a weight is asked for. `query_proj`, which is CALCE's own, is
    drawn at random where no source has it.

    Args:
      sources: kinds and paths.
      model_config: of the model.
      seed: for `query_proj`.

    Raises:
      WeightsFileError: a file is missing or damaged.
      CheckpointError: the same of a run.
      ConversionError: names, shapes or dtypes do not fit, or weights are missing; all that is wrong, in all sources.
    """
    base_spec, trained_spec = base_param_shapes(model_config), trainable_param_shapes(model_config)
    base: dict[str, LazyArray] = init_query_proj(model_config, seed)
    trained: dict[str, LazyArray] = {}
    base_path, problems = None, []
    for kind, path in sources:
        try:
            if kind in OWN_FORMATS:
                run = path if kind == "orbax" else None
                base_path = base_weights_path(path) if run else path
                base |= _check_native(open_tensors(base_path), base_spec)
                trained |= {} if run is None else run_trained_weights(run, trained_spec)
            elif FORMATS[kind].is_trained:
                trained |= _open_source(kind, path, model_config, trained_spec)
            else:
                base |= _open_source(kind, path, model_config, base_spec)
                base_path = None
        except ConversionError as error:
            problems += [f"{kind}:{path}: {problem}" for problem in error.problems]
    if not problems:
        problems = _describe_missing(base_spec.keys() - base.keys(), model_config)
    if problems:
        raise ConversionError(problems)
    origin = ",".join(f"{kind}:{path}" for kind, path in sources)
    return Weights({name: base[name] for name in base_spec}, trained, model_config, origin, base_path)


def open_whisper_weights(folder: Path) -> dict[str, LazyArray]:
    """Open a Whisper, whose sizes its own `config.json` tells.

    Raises:
      WeightsFileError: a file is missing or damaged.
      ConversionError: weights do not fit.
    """
    try:
        config = WhisperConfig.from_hugging_face(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise WeightsFileError(f"{folder / 'config.json'}: {error}") from error
    model = nnx.eval_shape(lambda: Whisper(config, rngs=nnx.Rngs(0)))
    return lazy_params(whisper.KEY_MAPPING, open_tensors(folder), nnx.state(model, nnx.Param))


def base_weights_path(run: Path) -> Path:
    """Return the base weights that a run stands on.

    Raises:
      ConfigError: this is no run.
      WeightsFileError: it has none, or they are not there.
    """
    configured_path = read_config(run).weights.base
    if not configured_path:
        raise WeightsFileError(
            f"{run} was trained on no base weights (config.weights.base), so there are none to convert"
        )
    for path in (packaged_path(configured_path), run / Path(configured_path).name):
        if path.is_file():
            return path
    raise WeightsFileError(
        f"{run / 'config.json'}: weights.base names {configured_path}, and there is no such file", "put it there"
    )


def run_trained_weights(run: Path, spec: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, LazyArray]:
    """Return what a run trained: of its best checkpoint, or the latest where none was scored; {} before the first.

    Raises:
      CheckpointError: the checkpoint is damaged, or of another size.
    """
    if not (run / "checkpoints").is_dir():
        return {}
    checkpoints = Checkpoints(run)
    try:
        step = checkpoints.best_step_and_metric[0] if checkpoints.best_step_and_metric else checkpoints.latest_step
        if step is None:
            raise CheckpointError(f"no checkpoint in {checkpoints.folder}", "give the folder of a run that trained")
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for n, a in spec.items()}
        return {name: as_lazy(np.asarray(a)) for name, a in checkpoints.restore_trainable(step, abstract).items()}
    finally:
        checkpoints.close()


def init_query_proj(model_config: CalceConfig, seed: int) -> dict[str, LazyArray]:
    """Return `query_proj` as a fresh model has it: no checkpoint but CALCE's own holds it."""
    layer = Linear(model_config.qformer.query_tokens, model_config.compressed_query_tokens, rngs=nnx.Rngs(seed))
    return {f"query_proj/{name}": as_lazy(np.asarray(leaf)) for name, leaf in named_leaves(nnx.state(layer)).items()}


def _open_source(
    kind: str, path: Path, model_config: CalceConfig, spec: Mapping[str, ArraySpec]
) -> dict[str, LazyArray]:
    description, mapping = SOURCE_FORMATS[kind], FORMATS[kind].mapping(model_config.qformer.cross_attention_frequency)
    tensors = open_tensors(path)
    if not matches_any(mapping, tensors):
        names = ", ".join(list(tensors)[:3])
        raise ConversionError(
            [f"this is not {description}: it has none of its names, but {len(tensors)} others ({names}, ...)"]
        )
    position_name = FORMATS[kind].position_embedding
    if position_name in tensors:
        tensors[position_name] = _resize_positions(tensors[position_name], model_config.vit.grid_size)
    param_names = {param for row in mapping_rows(mapping) for param in row.param_names}
    return lazy_params(mapping, tensors, {name: leaf for name, leaf in spec.items() if name in param_names})


def _resize_positions(positions: LazyArray, grid: int) -> LazyArray:
    """Fit learned positions (1, 1 + P, D) to frames of another size."""
    if len(positions.shape) != 3 or positions.shape[1] == 1 + grid**2:
        return positions
    shape = (positions.shape[0], 1 + grid**2, positions.shape[2])
    return LazyArray(shape, positions.dtype, lambda: vit.interpolate_positions(positions.read()[0], grid)[None])


def _check_native(tensors: Mapping[str, LazyArray], spec: Mapping[str, ArraySpec]) -> dict[str, LazyArray]:
    """Check tensors that have our names."""
    problems = [f"{name} {tensors[name].shape}: the model has no such weight" for name in tensors.keys() - spec.keys()]
    problems += [f"{name} {tuple(leaf.shape)}: missing" for name, leaf in spec.items() if name not in tensors]
    for name in spec.keys() & tensors.keys():
        tensor, expected_shape = tensors[name], tuple(spec[name].shape)
        if tensor.shape != expected_shape:
            problems.append(f"{name}: has shape {tensor.shape}, the model needs {expected_shape}")
        elif tensor.dtype not in WEIGHT_DTYPES:
            problems.append(f"{name}: has dtype {tensor.dtype}, which weights do not have")
    if problems:
        raise ConversionError(sorted(problems))
    return dict(tensors)


def _describe_missing(names: set[str], model_config: CalceConfig) -> list[str]:
    """Say for each missing weight which kinds of source have it."""
    mappings = {
        kind: FORMATS[kind].mapping(model_config.qformer.cross_attention_frequency)
        for kind in FORMATS
        if not FORMATS[kind].is_trained
    }
    params_by_kind = {
        kind: {param for row in mapping_rows(mapping) for param in row.param_names}
        for kind, mapping in mappings.items()
    }
    messages = []
    for name in sorted(names):
        kinds = " or ".join(f"{kind}:PATH" for kind in params_by_kind if name in params_by_kind[kind])
        messages.append(f"{name}: in no source; add {kinds}")
    return messages
