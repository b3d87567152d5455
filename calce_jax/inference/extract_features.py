"""Feature extraction: the frozen vision tower, and optionally the Q-Former, on every frame of a prepared folder, once.

Frames of several videos share a batch, so shapes are fixed whatever the length of videos. While the device encodes a
batch, the host decodes the next frames and writes the features of the last batch, with
`calce_jax.input_pipeline.feature_store`.

Dimensions: F frames of a batch, T frames of a video, Y X pixels, P tokens of a frame, D width.
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
from flax import nnx
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from calce_jax.batch import AnyArray, Features
from calce_jax.distributed.param_names import Params
from calce_jax.distributed.sharding import put_batch
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.dataset import TablesError, damage_errors, open_table
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
from calce_jax.storage.disk_space import format_bytes, free_bytes
from calce_jax.storage.failures import Failure
from calce_jax.storage.locks import FileLock

# Videos of a shard. An interrupted extraction loses the videos of its unfinished shard.
VIDEOS_PER_SHARD = 32
# Videos decoded ahead, and batches dispatched to the device before the first result is fetched.
PREFETCH_VIDEOS, MAX_BATCHES_IN_FLIGHT = 4, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuantizationError:
    """Sums of squares over each frame; their names are those in the shards, see `ShardWriter.add`.

    Fields:
      changed: of the difference between the stored and the computed tokens.
      tokens: of the computed tokens.
      changed_read, read: the same after the next layer before training (of the tower `ln_vision`, of the Q-Former
        `t5_proj`).
    """

    changed: Float[AnyArray, " F"]
    tokens: Float[AnyArray, " F"]
    changed_read: Float[AnyArray, " F"]
    read: Float[AnyArray, " F"]


@dataclass(frozen=True)
class ExtractionResult:
    """Result of a feature extraction.

    Fields:
      num_extracted: videos encoded now.
      num_existing: videos whose features were stored before.
      failures: videos that cannot be encoded.
      error: relative L2 error of the stored tokens, over the whole folder.
      projected_error: the same after the next layer, see `QuantizationError`.
      bytes_per_frame: size of a record.
      num_frames: frames encoded now.
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
    """Encode every video of a prepared folder whose features are not stored yet.

    Args:
      model: a config and its base weights, from `calce_jax.inference.trained_run.load_base_model`.
      videos: of the prepared folder.
      out: folder of the features.
      storage_dtype: "float32", "bfloat16" or "int8".
      source: "vit" stores the tower's tokens, "qformer" the Q-Former's.
      host, num_hosts: index of this machine among those that share the videos and `out`; each has its own devices.
      videos_per_shard: see `VIDEOS_PER_SHARD`.

    Raises:
      FeaturesError: `out` has features of another model, or does not fit on the disk; or no video can be encoded.
      LockError: another process writes this host's features there.
      OSError: a file cannot be written. The same call continues after the last complete shard.
    """
    out = Path(out)
    with FileLock(out / f"features-of-host-{host}.lock"):
        metadata = make_feature_metadata(model.config, model.model_config, storage_dtype, source)
        indices = range(host, len(videos), num_hosts)
        init_feature_folder(out, metadata, host)
        existing_features = FeatureStore(out)
        missing = existing_features.videos_without_features([videos.video_ids[index] for index in indices])
        _check_free_disk(out, len(missing) * metadata.frames * metadata.bytes_per_frame, storage_dtype)

        num_existing, num_extracted, num_frames, failures = 0, 0, 0, list[Failure]()
        read_options = grain.ReadOptions(num_threads=PREFETCH_VIDEOS, prefetch_buffer_size=PREFETCH_VIDEOS)
        loaded_videos = (
            grain.MapDataset.source(indices)
            .map(lambda index: videos.load(index, existing_features))
            .to_iter_dataset(read_options)
        )
        with tqdm(total=len(indices), desc="encode", unit="video", dynamic_ncols=True, disable=host > 0) as bar:

            def pending_videos() -> Iterator[tuple[FrameKeys, UInt8[np.ndarray, "T Y X 3"]]]:
                nonlocal num_existing
                for video in loaded_videos:
                    if video.frames is not None:
                        yield video.frame_keys, video.frames
                        continue
                    bar.update()
                    if video.failure is None:
                        num_existing += 1
                    else:
                        failures.append(video.failure)
                        bar.set_postfix(failed=len(failures), refresh=False)

            with _ShardSequence(out, host, videos_per_shard) as shards:
                for frame_keys, records, squared_sums in _extract_videos(
                    model, (storage_dtype, source), pending_videos()
                ):
                    shards.add(frame_keys, records, squared_sums)
                    num_extracted, num_frames = num_extracted + 1, num_frames + len(records)
                    bar.update()
        lines = "".join(json.dumps(asdict(failure)) + "\n" for failure in failures)
        write_atomic(out / f"failures-of-host-{host}.jsonl", lines)
    if failures and len(failures) == len(indices):
        first = failures[0]
        raise FeaturesError(
            f"none of the {len(indices)} videos in {videos.folder} can be encoded; first: {first.video}: "
            f"{first.reason}",
            first.remedy,
        )
    squared_sums = FeatureStore(out).squared_sums()
    return ExtractionResult(
        num_extracted,
        num_existing,
        failures,
        error=_relative_error(squared_sums, "changed", "tokens"),
        projected_error=_relative_error(squared_sums, "changed_read", "read"),
        bytes_per_frame=metadata.bytes_per_frame,
        num_frames=num_frames,
    )


def make_extract_fn(
    graph: Any, storage_dtype: StorageDtype, source: FeatureSource = "vit"
) -> Callable[[Params, Params, UInt8[Array, "F 1 Y X 3"]], tuple[Features, QuantizationError]]:
    """Build `extract(trainable, frozen, frames) -> (features, error)`, to be jitted; each frame is a video of T = 1."""

    def extract(
        trainable: Params, frozen: Params, frames: UInt8[Array, "F 1 Y X 3"]
    ) -> tuple[Features, QuantizationError]:
        model: Calce = nnx.merge(graph, trainable, frozen)
        vision_features = (
            model.encode_frames(frames) if source == "vit" else model.encode_queries(model.encode_frames(frames))
        )
        features = quantize(vision_features, storage_dtype)
        tokens, dequantized = (
            computed_or_stored.queries if isinstance(computed_or_stored, QFormerFeatures) else computed_or_stored
            for computed_or_stored in (vision_features, dequantize(features, model.config.dtype))
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
    """A video of the tables: its frames; or a failure; or neither, if its features are stored already."""

    frame_keys: FrameKeys
    frames: UInt8[np.ndarray, "T Y X 3"] | None = None
    failure: Failure | None = None


class VideoDataset:
    """The videos of a prepared folder, each once, even if it is in several splits.

    Args:
      folder: what `calce prepare --out` wrote.
      splits: names of splits; by default all.

    Attributes:
      folder: as given.
      video_ids: ids of the videos, in the order of indices.

    Raises:
      TablesError: there is no such folder or split.
    """

    def __init__(self, folder: str | Path, splits: Sequence[str] = ()):
        # TFDS's decorators hide the arguments of its methods from type checkers.
        builder: Any = open_table(folder, "videos")
        available_splits = builder.info.splits
        if unknown := [split for split in splits if split not in available_splits]:
            raise TablesError(
                f"{folder} has no split {unknown[0]!r}, but {', '.join(available_splits)}", "choose one of these"
            )
        self.folder = folder
        locations: dict[str, tuple[str, int]] = {}
        with damage_errors(folder):
            self._sources = {split: builder.as_data_source(split) for split in splits or available_splits}
            for split in self._sources:
                for row, video in enumerate(builder.info.metadata[split]):
                    locations.setdefault(video, (split, row))
        self.video_ids, self._locations = list(locations), list(locations.values())

    def __len__(self) -> int:
        return len(self.video_ids)

    def load(self, index: int, existing_features: FeatureStore) -> _LoadedVideo:
        """Read a video, and decode the frames that need features unless these are stored already.

        Args:
          index: position in `video_ids`.
          existing_features: stored features; its metadata say how many frames a video has, and their size.
        """
        split, row = self._locations[index]
        video_id = self.video_ids[index]
        with damage_errors(self.folder):
            video = self._sources[split][row]
            if video["video"].decode() != video_id:
                raise ValueError(
                    f"row {row} of {split} is {video['video'].decode()!r}, metadata.json says {video_id!r}"
                )
        try:
            positions = stored_frame_positions(int(video["total"]), video["indices"], existing_features.metadata.frames)
            jpegs = [video["keyframes"][position] for position in positions]
            indices = [int(video["indices"][position]) for position in positions]
            frame_keys = FrameKeys(video_id, indices, checksums(jpegs))
            if jpegs and existing_features.has_frames(frame_keys):
                return _LoadedVideo(frame_keys)
            return _LoadedVideo(frame_keys, decode_frames(jpegs, existing_features.metadata.image_size))
        except InputError as error:
            return _LoadedVideo(FrameKeys(video_id, (), ()), failure=Failure.of(video_id, error))


class _ShardSequence:
    """Writes shards of `videos_per_shard` videos; the last one is closed at the end, or discarded after an error."""

    def __init__(self, folder: Path, host: int, videos_per_shard: int):
        self._folder, self._host, self._videos_per_shard = folder, host, videos_per_shard
        self._shard_number = next_shard_number(folder)
        self._shard: ShardWriter | None = None

    def __enter__(self) -> "_ShardSequence":
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
    """Yield the frame keys, the records and the sums of squares of every video, in order."""
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
    """Yield the frame keys of its video, the record and the sums of squares of every frame.

    The host runs `MAX_BATCHES_IN_FLIGHT` batches ahead of the device.
    """
    extract = jax.jit(make_extract_fn(model.graph, *feature_kind), compiler_options=model.compiler_options)
    size = model.config.data.eval_batch * model.config.data.frames
    frames = ((frame_keys, frame) for frame_keys, video_frames in videos for frame in video_frames)
    in_flight: deque[tuple[list[FrameKeys], Any]] = deque()

    def take_oldest() -> Iterator[tuple[FrameKeys, bytes, dict[str, float]]]:
        keys_of_frames, result = in_flight.popleft()
        features, squares = jax.device_get(result)
        for n, frame_keys in enumerate(keys_of_frames):
            record = b"".join(np.asarray(leaf[n]).tobytes() for leaf in jax.tree.leaves(features))
            yield frame_keys, record, {name: float(value[n]) for name, value in vars(squares).items()}

    while batch := list(islice(frames, size)):
        pixels = np.zeros((size, 1, *batch[0][1].shape), np.uint8)
        pixels[: len(batch), 0] = [frame for _, frame in batch]
        with jax.set_mesh(model.mesh):
            result = extract(model.trainable, model.frozen, put_batch(pixels, model.mesh))
        in_flight.append(([frame_keys for frame_keys, _ in batch], result))
        if len(in_flight) == MAX_BATCHES_IN_FLIGHT:
            yield from take_oldest()
    while in_flight:
        yield from take_oldest()


def _sum_of_squares(
    tokens: Float[Array, "F 1 P D"], other: Float[Array, "F 1 P D"] | None = None
) -> Float[Array, " F"]:
    """Return the sum of squares of the tokens of each frame, or of their differences from `other`."""
    tokens = tokens.astype(jnp.float32)
    return jnp.square(tokens if other is None else tokens - other.astype(jnp.float32)).sum(axis=(1, 2, 3))


def _relative_error(squared_sums: Mapping[str, float], numerator: str, denominator: str) -> float:
    return math.sqrt(squared_sums.get(numerator, 0.0) / (squared_sums.get(denominator, 0.0) or 1.0))


def _check_free_disk(out: Path, needed: int, storage_dtype: StorageDtype) -> None:
    free = free_bytes(out)
    if needed > free:
        smaller = "" if storage_dtype == "int8" else "use --store=int8, "
        raise FeaturesError(
            f"{out}: the features take up to {format_bytes(needed)} and {format_bytes(free)} are free",
            f"make room, {smaller}fewer frames (--config.data.frames) or fewer splits (--splits)",
        )
