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

from calce_jax.batch import AnyArray, Features
from calce_jax.distributed.sharding import put_batch
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.dataset import TablesError, open_table
from calce_jax.input_pipeline.feature_fingerprint import make_feature_metadata
from calce_jax.input_pipeline.feature_store import (
    FeaturesError,
    FeatureStore,
    FrameKeys,
    ShardWriter,
    checksums,
    init_feature_folder,
    next_shard_number,
)
from calce_jax.input_pipeline.rows import InputError, decode_frames, stored_frame_positions
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import FeatureSource, StorageDtype, dequantize, quantize
from calce_jax.models.vision_features import QFormerFeatures
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_space import free_bytes
from calce_jax.storage.failures import Failure
from calce_jax.storage.locks import FileLock

# Videos of which nothing is kept when a run is interrupted: a shard is whole or it is not there.
VIDEOS_PER_SHARD = 32
# Videos whose frames are decoded ahead, and batches on their way through the device.
PREFETCH_VIDEOS, MAX_BATCHES_IN_FLIGHT = 4, 2


@struct.dataclass
class QuantizationError:
    """Sums of squares over each frame: of what storing changed, and of what it was applied to."""

    changed: Float[AnyArray, " F"]
    tokens: Float[AnyArray, " F"]
    changed_read: Float[AnyArray, " F"]  # as what comes next reads them, see `Kept`
    read: Float[AnyArray, " F"]


@dataclass(frozen=True)
class ExtractionResult:
    """What came of it.

    Fields:
      num_extracted: videos seen now.
      num_existing: videos whose features were there.
      failures: videos that cannot be seen.
      error, projected_error: relative L2 distance between what was seen and what is stored, over the whole folder; of the
        tokens, and of the tokens as what comes next reads them before training: the tower's after `ln_vision`, the
        Q-Former's after `t5_proj`.
      bytes_per_frame: of a record.
      num_frames: seen now.
    """

    num_extracted: int
    num_existing: int
    failures: list[Failure]
    error: float
    projected_error: float
    bytes_per_frame: int
    num_frames: int


def extract_features(
    model: TrainedModel,
    videos: "VideoDataset",
    out: str | Path,
    *,
    storage_dtype: StorageDtype,
    source: FeatureSource = "vit",
    host: int = 0,
    num_hosts: int = 1,
    videos_per_shard: int = VIDEOS_PER_SHARD,
) -> ExtractionResult:
    """See every video of a prepared folder, unless it was seen before.

    Args:
      model: a config and its weights, from `calce_jax.inference.trained_run.load_base_model`.
      videos: the videos.
      out: the folder of features.
      storage_dtype: in which numbers.
      source: the tower's tokens, or what the Q-Former says of these.
      host, num_hosts: which of several machines this is, and how many share the videos and `out`; each has its own devices.
      videos_per_shard: see `VIDEOS_PER_SHARD`.

    Raises:
      FeaturesError: `out` holds features of another make, or does not fit on the disk; or no video can be seen.
      LockError: another process writes this host's features there.
      OSError: a file cannot be written. The same call goes on from the last whole shard.
    """
    out = Path(out)
    with FileLock(out / f"features-of-host-{host}.lock"):
        return _keep_features(
            model,
            videos,
            out,
            store=storage_dtype,
            of=source,
            host=host,
            hosts=num_hosts,
            videos_a_shard=videos_per_shard,
        )


def _keep_features(
    base: TrainedModel,
    footage: "VideoDataset",
    out: Path,
    *,
    store: StorageDtype,
    of: FeatureSource,
    host: int,
    hosts: int,
    videos_a_shard: int,
) -> ExtractionResult:
    made = make_feature_metadata(base.config, base.model_config, store, of)
    mine = range(host, len(footage), hosts)
    init_feature_folder(out, made, host)
    before = FeatureStore(out)
    _check_free_disk(
        out,
        len(before.videos_without_features([footage.video_ids[n] for n in mine])) * made.frames * made.bytes_per_frame,
        store,
    )

    there, seen, frames, failures = 0, 0, 0, []
    ahead = grain.ReadOptions(num_threads=PREFETCH_VIDEOS, prefetch_buffer_size=PREFETCH_VIDEOS)
    loaded = grain.MapDataset.source(mine).map(lambda number: footage.load(number, before)).to_iter_dataset(ahead)
    with tqdm(total=len(mine), desc="see", unit="video", dynamic_ncols=True, disable=host > 0) as bar:

        def todo() -> Iterator[tuple[FrameKeys, UInt8[np.ndarray, "T Y X 3"]]]:
            nonlocal there
            for video in loaded:
                if video.frames is not None:
                    yield video.frame_keys, video.frames
                    continue
                bar.update()
                if video.failure is None:
                    there += 1
                else:
                    failures.append(video.failure)
                    bar.set_postfix(failed=len(failures), refresh=False)

        with _ShardWriter(out, host, videos_a_shard) as writer:
            for clip, records, squares in _extract_videos(base, (store, of), todo()):
                writer.add(clip, records, squares)
                seen, frames = seen + 1, frames + len(records)
                bar.update()
    write_atomic(out / f"failures-of-host-{host}.jsonl", "".join(json.dumps(asdict(each)) + "\n" for each in failures))
    if failures and len(failures) == len(mine):
        raise FeaturesError(
            f"none of the {len(mine)} videos in {footage.folder} can be seen; first: {failures[0].video}: "
            f"{failures[0].reason}",
            f"{failures[0].remedy}",
        )
    total = FeatureStore(out).squared_sums()
    return ExtractionResult(
        seen,
        there,
        failures,
        error=_relative_error(total, "changed", "tokens"),
        projected_error=_relative_error(total, "changed_read", "read"),
        bytes_per_frame=made.bytes_per_frame,
        num_frames=frames,
    )


def make_extract_fn(
    graph: Any, storage_dtype: StorageDtype, source: FeatureSource = "vit"
) -> Callable[[nnx.State, nnx.State, UInt8[Array, "F 1 Y X 3"]], tuple[Features, QuantizationError]]:
    """Build `keep(trainable, frozen, frames) -> (features, squares)`, to be jitted; a frame is a video of its own."""

    def extract(
        trainable: nnx.State, frozen: nnx.State, frames: UInt8[Array, "F 1 Y X 3"]
    ) -> tuple[Features, QuantizationError]:
        model: Calce = nnx.merge(graph, trainable, frozen)
        vision_features = (
            model.encode_frames(frames) if source == "vit" else model.encode_queries(model.encode_frames(frames))
        )
        features = quantize(vision_features, storage_dtype)
        tokens, dequantized = (
            vision_or_qformer.queries if isinstance(vision_or_qformer, QFormerFeatures) else vision_or_qformer
            for vision_or_qformer in (vision_features, dequantize(features, model.config.dtype))
        )
        projection = model.ln_vision if source == "vit" else model.t5_proj
        projected, projected_dequantized = projection(tokens), projection(dequantized)
        return features, QuantizationError(
            changed=_sum_of_squares(tokens, dequantized),
            tokens=_sum_of_squares(tokens),
            changed_read=_sum_of_squares(projected, projected_dequantized),
            read=_sum_of_squares(projected),
        )

    return extract


@dataclass(frozen=True)
class _LoadedVideo:
    """A video of the tables: its frames, or that they were seen before (neither frames nor failure), or why not."""

    frame_keys: FrameKeys
    frames: UInt8[np.ndarray, "T Y X 3"] | None = None
    failure: Failure | None = None


class VideoDataset:
    """The videos of a prepared folder, each once, whichever splits it is in.

    Args:
      folder: what `launch/prepare.py --out` wrote.
      splits: whose videos; of all splits unless given.

    Attributes:
      video_ids: ids of the videos.

    Raises:
      TablesError: there is no such folder or split.
    """

    def __init__(self, folder: str | Path, splits: Sequence[str] = ()):
        # TFDS's decorators hide the arguments of its methods from type checkers.
        builder: Any = open_table(folder, "videos")
        available_splits = builder.info.splits
        if unknown := [split for split in splits if split not in available_splits]:
            raise TablesError(
                f"{folder} has no split {unknown[0]!r}, but {', '.join(available_splits)}", "choose among these"
            )
        self.folder = folder
        self._sources = {split: builder.as_data_source(split) for split in splits or available_splits}
        locations: dict[str, tuple[str, int]] = {}
        for split in self._sources:
            for row, video in enumerate(builder.info.metadata[split]):
                locations.setdefault(video, (split, row))
        self.video_ids, self._locations = list(locations), list(locations.values())

    def __len__(self) -> int:
        return len(self.video_ids)

    def load(self, index: int, existing_features: FeatureStore) -> _LoadedVideo:
        """Read the frames of a video of which features are wanted, and decode them unless these are there already."""
        split, row = self._locations[index]
        video = self._sources[split][row]
        video_id = self.video_ids[index]
        try:
            positions = stored_frame_positions(int(video["total"]), video["indices"], existing_features.metadata.frames)
            jpegs = [video["keyframes"][place] for place in positions]
            frame_keys = FrameKeys(video_id, [int(video["indices"][place]) for place in positions], checksums(jpegs))
            if jpegs and existing_features.has_frames(frame_keys):
                return _LoadedVideo(frame_keys)
            return _LoadedVideo(frame_keys, decode_frames(jpegs, existing_features.metadata.image_size))
        except InputError as error:
            return _LoadedVideo(FrameKeys(video_id, (), ()), failure=Failure.of(video_id, error))


class _ShardWriter:
    """Writes shards of so many videos, each named when it is whole; the last when all is written."""

    def __init__(self, folder: Path, host: int, videos_per_shard: int):
        self._folder, self._host, self._videos_per_shard = folder, host, videos_per_shard
        self._shard_number = next_shard_number(folder)
        self._shard: ShardWriter | None = None

    def __enter__(self) -> "_ShardWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._shard is not None and kind is None:
            self._close(self._shard)
        elif self._shard is not None:
            self._shard.discard()

    def add(self, frame_keys: FrameKeys, records: Sequence[bytes], squared_sums: Mapping[str, float]) -> None:
        if self._shard is None:
            self._shard = ShardWriter(self._folder, self._shard_number, self._host)
        self._shard.add(frame_keys, records, squared_sums)
        if len(self._shard) == self._videos_per_shard:
            self._close(self._shard)

    def _close(self, shard: ShardWriter) -> None:
        shard.close()
        self._shard, self._shard_number = None, self._shard_number + 1


def _extract_videos(
    model: TrainedModel,
    feature_kind: tuple[StorageDtype, FeatureSource],
    videos: Iterator[tuple[FrameKeys, UInt8[np.ndarray, "T Y X 3"]]],
) -> Iterator[tuple[FrameKeys, list[bytes], dict[str, float]]]:
    """Give every clip with the records of its frames and their squares added up, in order."""
    for _, group in groupby(_extract_frames(model, feature_kind, videos), key=lambda frame: frame[0].video):
        frames = list(group)
        totals: dict[str, float] = {}
        for _, _, squares in frames:
            for name, value in squares.items():
                totals[name] = totals.get(name, 0.0) + value
        yield frames[0][0], [record for _, record, _ in frames], totals


def _extract_frames(
    model: TrainedModel,
    feature_kind: tuple[StorageDtype, FeatureSource],
    videos: Iterator[tuple[FrameKeys, UInt8[np.ndarray, "T Y X 3"]]],
) -> Iterator[tuple[FrameKeys, bytes, dict[str, float]]]:
    """Give every frame with its clip, record and squares. The host runs ahead of the device."""
    extract = jax.jit(make_extract_fn(model.graph, *feature_kind))
    size = model.config.data.eval_batch * model.config.data.frames
    frames = ((clip, frame) for clip, clip_frames in videos for frame in clip_frames)
    in_flight: deque[tuple[list[FrameKeys], Any]] = deque()

    def take_oldest() -> Iterator[tuple[FrameKeys, bytes, dict[str, float]]]:
        frame_keys, result = in_flight.popleft()
        features, squares = jax.device_get(result)
        for n, clip in enumerate(frame_keys):
            record = b"".join(np.asarray(part[n]).tobytes() for part in jax.tree.leaves(features))
            yield clip, record, {name: float(value[n]) for name, value in vars(squares).items()}

    while batch := list(islice(frames, size)):
        frame_keys = [clip for clip, _ in batch]
        pixels = np.zeros((size, 1, *batch[0][1].shape), np.uint8)
        pixels[: len(batch), 0] = [frame for _, frame in batch]
        with jax.set_mesh(model.mesh):
            in_flight.append((frame_keys, extract(model.trainable, model.frozen, put_batch(pixels, model.mesh))))
        if len(in_flight) == MAX_BATCHES_IN_FLIGHT:
            yield from take_oldest()
    while in_flight:
        yield from take_oldest()


def _sum_of_squares(
    tokens: Float[Array, "F 1 P D"], other: Float[Array, "F 1 P D"] | None = None
) -> Float[Array, " F"]:
    """Add up the squares of tokens, or of their differences from others, for each frame."""
    tokens = tokens.astype(jnp.float32)
    return jnp.square(tokens if other is None else tokens - other.astype(jnp.float32)).sum(axis=(1, 2, 3))


def _relative_error(total: Mapping[str, float], numerator: str, denominator: str) -> float:
    return math.sqrt(total.get(numerator, 0.0) / (total.get(denominator, 0.0) or 1.0))


def _check_free_disk(out: Path, needed: int, storage_dtype: StorageDtype) -> None:
    free = free_bytes(out)
    if needed > free:
        smaller = "" if storage_dtype == "int8" else "use --store=int8, "
        raise FeaturesError(
            f"{out}: the features take up to {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            f"make room, {smaller}fewer frames (--config.data.frames) or fewer splits (--splits)",
        )
