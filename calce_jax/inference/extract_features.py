"""The frozen vision tower over every video of a prepared folder, once; what is seen is kept (`calce_jax.input_pipeline.feature_store`).

Frames of several videos share a batch, so shapes are fixed whatever the videos' lengths. While the device sees a batch
the host decodes the next ones and writes the last one.

Dimensions: F frames of a batch, Y X pixels, P tokens of a frame, D width.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from calce_jax.batch import Data, Features
from calce_jax.distributed.sharding import put_batch
from calce_jax.inference.trained_run import Trained
from calce_jax.input_pipeline.dataset import TablesError, open_table
from calce_jax.input_pipeline.feature_fingerprint import made_by
from calce_jax.input_pipeline.feature_store import (
    Clip,
    FeatureFolder,
    FeaturesError,
    Shard,
    claim_features,
    next_number,
    sums_of,
)
from calce_jax.input_pipeline.rows import InputError, decoded, places_of
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import Of, Store, restored, stored
from calce_jax.models.vision_features import Looked
from calce_jax.storage.atomic_files import write_output
from calce_jax.storage.disk_space import free_bytes
from calce_jax.storage.failures import Failure
from calce_jax.storage.locks import FileLock

# Videos of which nothing is kept when a run is interrupted: a shard is whole or it is not there.
VIDEOS_A_SHARD = 32
# Videos whose frames are decoded ahead, and batches on their way through the device.
DECODED, UNDER_WAY = 4, 2


@struct.dataclass
class Squares:
    """Sums of squares over each frame: of what storing changed, and of what it was applied to."""

    changed: Float[Data, " F"]
    tokens: Float[Data, " F"]
    changed_read: Float[Data, " F"]  # as what comes next reads them, see `Kept`
    read: Float[Data, " F"]


@dataclass(frozen=True)
class Kept:
    """What came of it.

    Fields:
      seen: videos seen now.
      there: videos whose features were there.
      failures: videos that cannot be seen.
      error, read_error: relative L2 distance between what was seen and what is stored, over the whole folder; of the
        tokens, and of the tokens as what comes next reads them before training: the tower's after `ln_vision`, the
        Q-Former's after `t5_proj`.
      bytes_a_frame: of a record.
      frames: seen now.
    """

    seen: int
    there: int
    failures: list[Failure]
    error: float
    read_error: float
    bytes_a_frame: int
    frames: int


def keep_features(
    base: Trained,
    footage: "Footage",
    out: str | Path,
    *,
    store: Store,
    of: Of = "vit",
    host: int = 0,
    hosts: int = 1,
    videos_a_shard: int = VIDEOS_A_SHARD,
) -> Kept:
    """See every video of a prepared folder, unless it was seen before.

    Args:
      base: a config and its weights, from `calce_jax.inference.trained_run.open_base`.
      footage: the videos.
      out: the folder of features.
      store: in which numbers.
      of: the tower's tokens, or what the Q-Former says of these.
      host, hosts: which of several machines this is, and how many share the videos and `out`; each has its own devices.
      videos_a_shard: see `VIDEOS_A_SHARD`.

    Raises:
      FeaturesError: `out` holds features of another make, or does not fit on the disk; or no video can be seen.
      LockError: another process writes this host's features there.
      OSError: a file cannot be written. The same call goes on from the last whole shard.
    """
    out = Path(out)
    with FileLock(out / f"features-of-host-{host}.lock"):
        return _keep_features(
            base, footage, out, store=store, of=of, host=host, hosts=hosts, videos_a_shard=videos_a_shard
        )


def _keep_features(
    base: Trained,
    footage: "Footage",
    out: Path,
    *,
    store: Store,
    of: Of,
    host: int,
    hosts: int,
    videos_a_shard: int,
) -> Kept:
    made = made_by(base.config, base.sizes, store, of)
    mine = range(host, len(footage), hosts)
    claim_features(out, made, host)
    before = FeatureFolder(out)
    _check_room(out, len(before.without([footage.names[n] for n in mine])) * made.frames * made.bytes_a_frame, store)

    there, seen, frames, failures = 0, 0, 0, []
    ahead = grain.ReadOptions(num_threads=DECODED, prefetch_buffer_size=DECODED)
    loaded = grain.MapDataset.source(mine).map(lambda number: footage.load(number, before)).to_iter_dataset(ahead)
    with tqdm(total=len(mine), desc="see", unit="video", dynamic_ncols=True, disable=host > 0) as bar:

        def todo() -> Iterator[tuple[Clip, UInt8[np.ndarray, "T Y X 3"]]]:
            nonlocal there
            for video in loaded:
                if video.frames is not None:
                    yield video.clip, video.frames
                    continue
                bar.update()
                if video.failure is None:
                    there += 1
                else:
                    failures.append(video.failure)
                    bar.set_postfix(failed=len(failures), refresh=False)

        with _Writer(out, host, videos_a_shard) as writer:
            for clip, records, squares in _seen(base, (store, of), todo()):
                writer.add(clip, records, squares)
                seen, frames = seen + 1, frames + len(records)
                bar.update()
    write_output(out / f"failures-of-host-{host}.jsonl", "".join(json.dumps(asdict(each)) + "\n" for each in failures))
    if failures and len(failures) == len(mine):
        raise FeaturesError(
            f"none of the {len(mine)} videos in {footage.folder} can be seen; first: {failures[0].video}: "
            f"{failures[0].reason}",
            f"{failures[0].remedy}",
        )
    total = FeatureFolder(out).squares()
    return Kept(
        seen,
        there,
        failures,
        error=_relative(total, "changed", "tokens"),
        read_error=_relative(total, "changed_read", "read"),
        bytes_a_frame=made.bytes_a_frame,
        frames=frames,
    )


def make_keep(
    graph: Any, store: Store, of: Of = "vit"
) -> Callable[[nnx.State, nnx.State, UInt8[Array, "F 1 Y X 3"]], tuple[Features, Squares]]:
    """Build `keep(trainable, frozen, frames) -> (features, squares)`, to be jitted; a frame is a video of its own."""

    def keep(trainable: nnx.State, frozen: nnx.State, frames: UInt8[Array, "F 1 Y X 3"]) -> tuple[Features, Squares]:
        model: Calce = nnx.merge(graph, trainable, frozen)
        seen = model.see(frames) if of == "vit" else model.look(model.see(frames))
        features = stored(seen, store)
        tokens, again = (
            each.queries if isinstance(each, Looked) else each
            for each in (seen, restored(features, model.config.dtype))
        )
        reader = model.ln_vision if of == "vit" else model.t5_proj
        read, read_again = reader(tokens), reader(again)
        return features, Squares(
            changed=_squares(tokens, again),
            tokens=_squares(tokens),
            changed_read=_squares(read, read_again),
            read=_squares(read),
        )

    return keep


@dataclass(frozen=True)
class _Loaded:
    """A video of the tables: its frames, or that they were seen before (neither frames nor failure), or why not."""

    clip: Clip
    frames: UInt8[np.ndarray, "T Y X 3"] | None = None
    failure: Failure | None = None


class Footage:
    """The videos of a prepared folder, each once, whichever splits it is in.

    Args:
      folder: what `launch/prepare.py --out` wrote.
      splits: whose videos; of all splits unless given.

    Attributes:
      names: ids of the videos.

    Raises:
      TablesError: there is no such folder or split.
    """

    def __init__(self, folder: str | Path, splits: Sequence[str] = ()):
        # TFDS's decorators hide the arguments of its methods from type checkers.
        builder: Any = open_table(folder, "videos")
        known = builder.info.splits
        if unknown := [split for split in splits if split not in known]:
            raise TablesError(f"{folder} has no split {unknown[0]!r}, but {', '.join(known)}", "choose among these")
        self.folder = folder
        self._sources = {split: builder.as_data_source(split) for split in splits or known}
        places: dict[str, tuple[str, int]] = {}
        for split in self._sources:
            for row, video in enumerate(builder.info.metadata[split]):
                places.setdefault(video, (split, row))
        self.names, self._places = list(places), list(places.values())

    def __len__(self) -> int:
        return len(self.names)

    def load(self, number: int, before: FeatureFolder) -> _Loaded:
        """Read the frames of a video of which features are wanted, and decode them unless these are there already."""
        split, row = self._places[number]
        video = self._sources[split][row]
        name = self.names[number]
        try:
            places = places_of(int(video["total"]), video["indices"], before.made.frames)
            jpegs = [video["keyframes"][place] for place in places]
            clip = Clip(name, [int(video["indices"][place]) for place in places], sums_of(jpegs))
            if jpegs and before.holds(clip):
                return _Loaded(clip)
            return _Loaded(clip, decoded(jpegs, before.made.image_size))
        except InputError as error:
            return _Loaded(Clip(name, (), ()), failure=Failure.of(name, error))


class _Writer:
    """Writes shards of so many videos, each named when it is whole; the last when all is written."""

    def __init__(self, folder: Path, host: int, videos_a_shard: int):
        self._folder, self._host, self._most = folder, host, videos_a_shard
        self._number = next_number(folder)
        self._shard: Shard | None = None

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._shard is not None and kind is None:
            self._close(self._shard)
        elif self._shard is not None:
            self._shard.drop()

    def add(self, clip: Clip, records: Sequence[bytes], squares: Mapping[str, float]) -> None:
        if self._shard is None:
            self._shard = Shard(self._folder, self._number, self._host)
        self._shard.add(clip, records, squares)
        if len(self._shard) == self._most:
            self._close(self._shard)

    def _close(self, shard: Shard) -> None:
        shard.close()
        self._shard, self._number = None, self._number + 1


def _seen(
    base: Trained, kind: tuple[Store, Of], clips: Iterator[tuple[Clip, UInt8[np.ndarray, "T Y X 3"]]]
) -> Iterator[tuple[Clip, list[bytes], dict[str, float]]]:
    """Give every clip with the records of its frames and their squares added up, in order."""
    for _, group in groupby(_seen_frames(base, kind, clips), key=lambda each: each[0].video):
        frames = list(group)
        totals: dict[str, float] = {}
        for _, _, squares in frames:
            for name, value in squares.items():
                totals[name] = totals.get(name, 0.0) + value
        yield frames[0][0], [record for _, record, _ in frames], totals


def _seen_frames(
    base: Trained, kind: tuple[Store, Of], clips: Iterator[tuple[Clip, UInt8[np.ndarray, "T Y X 3"]]]
) -> Iterator[tuple[Clip, bytes, dict[str, float]]]:
    """Give every frame with its clip, record and squares. The host runs ahead of the device."""
    keep = jax.jit(make_keep(base.graph, *kind))
    size = base.config.data.eval_batch * base.config.data.frames
    frames = ((clip, frame) for clip, of_clip in clips for frame in of_clip)
    under_way: deque[tuple[list[Clip], Any]] = deque()

    def arrived() -> Iterator[tuple[Clip, bytes, dict[str, float]]]:
        owners, result = under_way.popleft()
        features, squares = jax.device_get(result)
        for n, clip in enumerate(owners):
            record = b"".join(np.asarray(part[n]).tobytes() for part in jax.tree.leaves(features))
            yield clip, record, {name: float(value[n]) for name, value in vars(squares).items()}

    while batch := list(islice(frames, size)):
        owners = [clip for clip, _ in batch]
        pixels = np.zeros((size, 1, *batch[0][1].shape), np.uint8)
        pixels[: len(batch), 0] = [frame for _, frame in batch]
        with jax.set_mesh(base.mesh):
            under_way.append((owners, keep(base.trainable, base.frozen, put_batch(pixels, base.mesh))))
        if len(under_way) == UNDER_WAY:
            yield from arrived()
    while under_way:
        yield from arrived()


def _squares(tokens: Float[Array, "F 1 P D"], others: Float[Array, "F 1 P D"] | None = None) -> Float[Array, " F"]:
    """Add up the squares of tokens, or of their differences from others, for each frame."""
    tokens = tokens.astype(jnp.float32)
    return jnp.square(tokens if others is None else tokens - others.astype(jnp.float32)).sum(axis=(1, 2, 3))


def _relative(total: Mapping[str, float], part: str, whole: str) -> float:
    return math.sqrt(total.get(part, 0.0) / (total.get(whole, 0.0) or 1.0))


def _check_room(out: Path, needed: int, store: Store) -> None:
    free = free_bytes(out)
    if needed > free:
        smaller = "" if store == "int8" else "use --store=int8, "
        raise FeaturesError(
            f"{out}: the features take up to {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            f"make room, {smaller}fewer frames (--config.data.frames) or fewer splits (--splits)",
        )
