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
from calce_jax.checkpoints.convert.mapping import Table, prefixed, rows_of
from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.state_dict import WEIGHT_DTYPES, ConversionError, Lazy, Shaped, fits, parameters
from calce_jax.checkpoints.convert.weights import Weights, base_shapes, held, trained_shapes
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
      table: its rows, for a Q-Former in which every so-many-th layer has cross-attention.
      trained: whether it holds what CALCE trains, without the base weights.
      positions: the name of the learned positions, which are interpolated where the frames have another size.
    """

    table: Callable[[int], Table]
    trained: bool = False
    positions: str | None = None


FORMATS: dict[str, SourceFormat] = {
    "lavis": SourceFormat(blip2.lavis),
    "eva": SourceFormat(lambda _: prefixed(vit.TABLE, ours="vit/"), positions="pos_embed"),
    "t5": SourceFormat(lambda _: prefixed(t5.table(lora=False), ours="t5/")),
    "bert": SourceFormat(lambda _: bert.table()),
    "hf": SourceFormat(blip2.hugging_face, positions="vision_model.embeddings.position_embedding"),
    "calce": SourceFormat(lambda _: calce.checkpoint(), trained=True),
    "mrblip": SourceFormat(lambda _: calce.checkpoint(query_proj=False), trained=True),
}
OWN_FORMATS = ("base", "orbax")


def open_sources(sources: Sequence[tuple[str, Path]], sizes: CalceConfig, *, seed: int = 0) -> Weights:
    """Open checkpoints and check that together they fill a model; later ones take the place of earlier ones.

    Nothing but names, shapes and dtypes is read until a weight is asked for. `query_proj`, which is CALCE's own, is
    drawn at random where no source has it.

    Args:
      sources: kinds and paths.
      sizes: of the model.
      seed: for `query_proj`.

    Raises:
      WeightsFileError: a file is missing or damaged.
      CheckpointError: the same of a run.
      ConversionError: names, shapes or dtypes do not fit, or weights are missing; all that is wrong, in all sources.
    """
    wanted, trainable = base_shapes(sizes), trained_shapes(sizes)
    base: dict[str, Lazy] = drawn_query_proj(sizes, seed)
    trained: dict[str, Lazy] = {}
    file, problems = None, []
    for kind, path in sources:
        try:
            if kind in OWN_FORMATS:
                run = path if kind == "orbax" else None
                file = base_file(path) if run else path
                base |= _named_as_here(open_tensors(file), wanted)
                trained |= {} if run is None else trained_of_run(run, trainable)
            elif FORMATS[kind].trained:
                trained |= _read(kind, path, sizes, trainable)
            else:
                base |= _read(kind, path, sizes, wanted)
                file = None
        except ConversionError as error:
            problems += [f"{kind}:{path}: {problem}" for problem in error.problems]
    if not problems:
        problems = _missing(wanted.keys() - base.keys(), sizes)
    if problems:
        raise ConversionError(problems)
    origin = ",".join(f"{kind}:{path}" for kind, path in sources)
    return Weights({name: base[name] for name in wanted}, trained, sizes, origin, file)


def open_whisper(folder: Path) -> dict[str, Lazy]:
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
    return parameters(whisper.TABLE, open_tensors(folder), nnx.state(model, nnx.Param))


def base_file(run: Path) -> Path:
    """Return the base weights that a run stands on.

    Raises:
      ConfigError: this is no run.
      WeightsFileError: it has none, or they are not there.
    """
    named = read_config(run).weights.base
    if not named:
        raise WeightsFileError(
            f"{run} was trained on no base weights (config.weights.base), so there are none to convert"
        )
    for path in (packaged_path(named), run / Path(named).name):
        if path.is_file():
            return path
    raise WeightsFileError(
        f"{run / 'config.json'}: weights.base names {named}, and there is no such file", "put it there"
    )


def trained_of_run(run: Path, trainable: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Lazy]:
    """Return what a run trained: of its best checkpoint, or the latest where none was scored; {} before the first.

    Raises:
      CheckpointError: the checkpoint is damaged, or of another size.
    """
    if not (run / "checkpoints").is_dir():
        return {}
    checkpoints = Checkpoints(run)
    try:
        step = checkpoints.best[0] if checkpoints.best else checkpoints.latest
        if step is None:
            raise CheckpointError(f"no checkpoint in {checkpoints.folder}", "give the folder of a run that trained")
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place) for n, a in trainable.items()}
        return {name: held(np.asarray(a)) for name, a in checkpoints.restore_trainable(step, abstract).items()}
    finally:
        checkpoints.close()


def drawn_query_proj(sizes: CalceConfig, seed: int) -> dict[str, Lazy]:
    """Return `query_proj` as a fresh model has it: no checkpoint but CALCE's own holds it."""
    layer = Linear(sizes.qformer.queries, sizes.compressed, rngs=nnx.Rngs(seed))
    return {f"query_proj/{name}": held(np.asarray(leaf)) for name, leaf in named_leaves(nnx.state(layer)).items()}


def _read(kind: str, path: Path, sizes: CalceConfig, wanted: Mapping[str, Shaped]) -> dict[str, Lazy]:
    about, table = SOURCE_FORMATS[kind], FORMATS[kind].table(sizes.qformer.cross_every)
    tensors = open_tensors(path)
    if not fits(table, tensors):
        names = ", ".join(list(tensors)[:3])
        raise ConversionError(
            [f"this is not {about}: it has none of its names, but {len(tensors)} others ({names}, ...)"]
        )
    positions = FORMATS[kind].positions
    if positions in tensors:
        tensors[positions] = _stretched(tensors[positions], sizes.vit.grid)
    parts = {part for row in rows_of(table) for part in row.parts}
    return parameters(table, tensors, {name: leaf for name, leaf in wanted.items() if name in parts})


def _stretched(positions: Lazy, grid: int) -> Lazy:
    """Fit learned positions (1, 1 + P, D) to frames of another size."""
    if len(positions.shape) != 3 or positions.shape[1] == 1 + grid**2:
        return positions
    shape = (positions.shape[0], 1 + grid**2, positions.shape[2])
    return Lazy(shape, positions.dtype, lambda: vit.interpolate_positions(positions.read()[0], grid)[None])


def _named_as_here(tensors: Mapping[str, Lazy], wanted: Mapping[str, Shaped]) -> dict[str, Lazy]:
    """Check tensors that have our names."""
    problems = [
        f"{name} {tensors[name].shape}: the model has no such weight" for name in tensors.keys() - wanted.keys()
    ]
    problems += [f"{name} {tuple(leaf.shape)}: missing" for name, leaf in wanted.items() if name not in tensors]
    for name in wanted.keys() & tensors.keys():
        there, here = tensors[name], tuple(wanted[name].shape)
        if there.shape != here:
            problems.append(f"{name}: has shape {there.shape}, the model needs {here}")
        elif there.dtype not in WEIGHT_DTYPES:
            problems.append(f"{name}: has dtype {there.dtype}, which weights do not have")
    if problems:
        raise ConversionError(sorted(problems))
    return dict(tensors)


def _missing(names: set[str], sizes: CalceConfig) -> list[str]:
    """Say for each missing weight which kinds of source have it."""
    tables = {kind: FORMATS[kind].table(sizes.qformer.cross_every) for kind in FORMATS if not FORMATS[kind].trained}
    fills = {kind: {part for row in rows_of(table) for part in row.parts} for kind, table in tables.items()}
    said = []
    for name in sorted(names):
        kinds = " or ".join(f"{kind}:PATH" for kind in fills if name in fills[kind])
        said.append(f"{name}: in no source; add {kinds}")
    return said
