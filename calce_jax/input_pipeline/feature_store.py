"""A folder of stored features: the tokens of every frame of a prepared folder's videos.

    DIR/features.json                           the model that made them, and their shapes (`FeatureMetadata`)
    DIR/features-00000-of-host-0.array_record   one record per frame, the frames of a video together, then the contents

The contents are the last record of a shard, as JSON: the video, frame indices and checksums of the other records. A
shard is written under another name and renamed when it is complete. If two shards have the same frame, because its
video was prepared again, the later one is used.

Dimensions: T frames, P tokens of a frame, D width, G scales of a token, F width of means.
"""

import errno
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from array_record.python import array_record_module as array_record  # pyright: ignore[reportAttributeAccessIssue]

from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic

FORMAT_VERSION = 1
MAX_SIZE = 2**31
STORAGE_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
SHARD_NAME = re.compile(r"features-(\d+)-of-host-(\d+)\.array_record")
# Features hardly compress, and records are read one by one.
WRITER_OPTIONS, READER_OPTIONS = "group_size:1,uncompressed", "readahead_buffer_size:0,max_parallelism:0"


class FeaturesError(UserError):
    """Features are missing, damaged or of another model; the message names the folder, the field and the remedy."""


@dataclass(frozen=True)
class FeatureMetadata:
    """The model that made the features of a folder, and their shapes; the content of features.json.

    Fields:
      vision: hash of the weights, see `calce_jax.input_pipeline.feature_fingerprint.weights_hash`.
      size, frozen_dtype, compute_dtype: of the model.
      image_size: pixels of a side of a frame.
      frames: of a video.
      store: dtype of the values: "float32", "bfloat16" or "int8".
      tokens, width, scales: P, D and G; G is 0 without int8.
      of: "vit", the tower's tokens; or "qformer", the Q-Former's tokens.
      means: F, or 0: the Q-Former's features have one float32 vector per frame, by which stage 1 clusters frames.
      base, git, jax: for information: file of the weights, revision of the code, version of jax.
      version: of the format.
    """

    vision: str
    size: str
    frozen_dtype: str
    compute_dtype: str
    image_size: int
    frames: int
    store: str
    tokens: int
    width: int
    scales: int
    base: str
    git: str
    jax: str
    of: str = "vit"
    means: int = 0
    version: int = FORMAT_VERSION

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored values."""
        return np.dtype(STORAGE_DTYPES[self.store])

    @property
    def bytes_per_frame(self) -> int:
        """Size of a record."""
        return self.tokens * (self.width * self.dtype.itemsize + self.scales * 4) + self.means * 4


@dataclass(frozen=True)
class FrameKeys:
    """Identifies frames of a video, in the order of time.

    Fields:
      video: id of the video.
      indices: of the frames in the file.
      checksums: CRC-32 of each frame's JPEG.
    """

    video: str
    indices: Sequence[int]
    checksums: Sequence[int]


def checksums(jpegs: Sequence[bytes]) -> list[int]:
    """Return the CRC-32 of each JPEG, by which a frame that was prepared again is detected."""
    return [zlib.crc32(jpeg) for jpeg in jpegs]


class FeatureStore:
    """Reads stored features by video and frame.

    It may be pickled for worker processes; each process opens the shards when it first reads.

    Args:
      folder: what `calce cache_features --out` wrote.

    Attributes:
      folder: as a path.
      metadata: of the features.

    Raises:
      FeaturesError: the folder has no features, or features of another version.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.metadata = Path(folder), read_metadata(folder)

    def read(self, frame_keys: FrameKeys) -> dict[str, np.ndarray]:
        """Return the features of frames, by field of `Features`.

        Returns:
          "values" (T, P, D) in the stored dtype; for int8 "scale" float32 (T, P, G); for a Q-Former "means" float32
          (T, F).

        Raises:
          FeaturesError: some frames have no features, were prepared again since, or a shard is damaged.
        """
        locations, metadata = self._locations.get(frame_keys.video, {}), self.metadata
        if missing := [index for index in frame_keys.indices if index not in locations]:
            raise FeaturesError(
                f"{len(missing)} of its {len(frame_keys.indices)} frames have no features in {self.folder}",
                "run `calce cache_features` with this config",
            )
        wanted = [locations[index] for index in frame_keys.indices]
        if not self.has_frames(frame_keys):
            raise FeaturesError(
                f"it was prepared anew since its features were stored in {self.folder}",
                "run `calce cache_features` again",
            )
        values = np.empty((len(wanted), metadata.tokens, metadata.width), metadata.dtype)
        scales = np.empty((len(wanted), metadata.tokens, metadata.scales), np.float32)
        means = np.empty((len(wanted), metadata.means), np.float32)
        for row, record in enumerate(self._read_records(wanted)):
            offset = 0
            for part in (values[row], scales[row], means[row]):
                part.reshape(-1).view(np.uint8)[:] = np.frombuffer(record, np.uint8, part.nbytes, offset)
                offset += part.nbytes
        arrays = {"values": values, "scale": scales, "means": means}
        return {name: array for name, array in arrays.items() if array.shape[-1]}

    def has_frames(self, frame_keys: FrameKeys) -> bool:
        """Return whether all frames have features, with the same checksums."""
        locations = self._locations.get(frame_keys.video, {})
        return all(
            index in locations and locations[index].checksum == checksum
            for index, checksum in zip(frame_keys.indices, frame_keys.checksums, strict=True)
        )

    def videos_without_features(self, videos: Sequence[str]) -> list[str]:
        """Return the videos without any features, each once."""
        return [video for video in dict.fromkeys(videos) if video not in self._locations]

    def squared_sums(self) -> dict[str, float]:
        """Return the totals over all shards of the sums of squares given to `ShardWriter.add`, by name."""
        total: dict[str, float] = {}
        for shard in _list_shards(self.folder):
            for name, value in _read_contents(shard)["squares"].items():
                total[name] = total.get(name, 0.0) + value
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "metadata": self.metadata}

    @cached_property
    def _locations(self) -> dict[str, dict[int, "_RecordLocation"]]:
        """The shard and record of every frame, by video and frame index."""
        locations: dict[str, dict[int, _RecordLocation]] = {}
        for shard in _list_shards(self.folder):
            record = 0
            for clip in _read_contents(shard)["clips"]:
                by_index = locations.setdefault(clip["video"], {})
                for index, checksum in zip(clip["indices"], clip["sums"], strict=True):
                    by_index[index] = _RecordLocation(shard, record, checksum)
                    record += 1
        return locations

    @cached_property
    def _readers(self) -> dict[Path, Any]:
        return {}

    def _read_records(self, locations: Sequence["_RecordLocation"]) -> Iterator[bytes]:
        """Read records; those of a video are in one shard, unless some of its frames were stored before others."""
        iterators = {}
        for shard in dict.fromkeys(location.shard for location in locations):
            if shard not in self._readers:
                self._readers[shard] = _open_reader(shard)
            records = [location.record for location in locations if location.shard == shard]
            try:
                iterators[shard] = iter(self._readers[shard].read(records))
            except RuntimeError as error:  # a checksum of ArrayRecord is wrong
                raise _damaged(shard, error) from error
        for location in locations:
            yield next(iterators[location.shard])


@dataclass(frozen=True)
class _RecordLocation:
    shard: Path
    record: int
    checksum: int


class ShardWriter:
    """Writes a shard under another name; `close` renames it, `discard` removes it.

    Args:
      folder: of the features; it must exist.
      number, host: for the name of the shard.

    Attributes:
      path: of the complete shard.
    """

    def __init__(self, folder: Path, number: int, host: int):
        self.path = folder / f"features-{number:05d}-of-host-{host}.array_record"
        self._partial_path = self.path.with_name(self.path.name + ".part")
        self._writer: Any = array_record.ArrayRecordWriter(str(self._partial_path), WRITER_OPTIONS)
        self._clips: list[dict[str, Any]] = []
        self._squared_sums: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._clips)

    def add(self, frame_keys: FrameKeys, records: Sequence[bytes], squared_sums: Mapping[str, float]) -> None:
        """Add a video.

        Args:
          frame_keys: its frames.
          records: the bytes of each frame: values, then scales, then means.
          squared_sums: sums of squares by name, of which the contents hold the totals; see
            `calce_jax.inference.extract_features.QuantizationError`.
        """
        for record in records:
            self._write(record)
        self._clips.append(
            {"video": frame_keys.video, "indices": list(frame_keys.indices), "sums": list(frame_keys.checksums)}
        )
        for name, value in squared_sums.items():
            self._squared_sums[name] = self._squared_sums.get(name, 0.0) + value

    def close(self) -> None:
        """Write the contents, and rename the shard.

        Raises:
          OSError: it cannot be written.
        """
        self._write(json.dumps({"clips": self._clips, "squares": self._squared_sums}).encode())
        self._with_disk_errors(self._writer.close)
        os.replace(self._partial_path, self.path)

    def discard(self) -> None:
        """Remove what is written so far; a closed shard stays."""
        with suppress(RuntimeError):  # on a full disk
            self._writer.close()
        self._partial_path.unlink(missing_ok=True)

    def _write(self, record: bytes) -> None:
        self._with_disk_errors(self._writer.write, record)

    def _with_disk_errors(self, operation: Any, *args: Any) -> None:
        try:
            operation(*args)
        except RuntimeError as error:
            # ArrayRecord reports a full disk by its text alone.
            number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(
                number, f"cannot write {self.path} ({error}); make room and run the same command again"
            ) from error


def init_feature_folder(folder: Path, metadata: FeatureMetadata, host: int) -> None:
    """Create features.json, or check an existing one, and remove incomplete shards of this host.

    Raises:
      FeaturesError: the folder has features of another model or dtype; lists the fields that differ.
      OSError: features.json cannot be written.
    """
    path = folder / "features.json"
    if path.exists():
        if mismatches := diff_metadata(read_metadata(folder), metadata, ("frames", "store")):
            raise FeaturesError(
                f"{path}: these features were made with another config",
                "choose another --out, or remove the folder:\n  " + "\n  ".join(mismatches),
            )
    else:
        write_atomic(path, json.dumps(asdict(metadata), indent=2) + "\n")
    for part in folder.glob(f"features-*-of-host-{host}.array_record.part"):
        part.unlink()


def next_shard_number(folder: Path) -> int:
    """Return the number after the highest of all shards."""
    return max((_shard_number(shard)[0] for shard in _list_shards(folder)), default=-1) + 1


def read_metadata(folder: str | Path) -> FeatureMetadata:
    """Read features.json.

    Raises:
      FeaturesError: it is missing, damaged, or of another version.
    """
    path = Path(folder) / "features.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != FORMAT_VERSION:
            raise FeaturesError(
                f"{path} has version {content['version']}, this program reads {FORMAT_VERSION}",
                "run `calce cache_features` with another --out",
            )
        metadata = FeatureMetadata(**content)
        for field in fields(metadata):
            value = getattr(metadata, field.name)
            if type(value) is not field.type or (isinstance(value, int) and not 0 <= value < MAX_SIZE):
                raise TypeError(f"{field.name} is {value!r:.60}")
        return metadata
    except UserError:
        raise
    except FileNotFoundError:
        raise FeaturesError(
            f"there are no features in {folder}: {path} is missing", f"run `calce cache_features` with --out={folder}"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FeaturesError(
            f"{path} is damaged ({error})", "remove the folder and run `calce cache_features` again"
        ) from error


def diff_metadata(stored: FeatureMetadata, expected: FeatureMetadata, extra_fields: Sequence[str] = ()) -> list[str]:
    """List the fields in which stored features differ from those of a run, as "vision: 3f.. there, 9a.. here".

    Fields that a run may have otherwise are not compared: number of frames, stored dtype, and information.

    Args:
      stored: "there".
      expected: of the run, "here".
      extra_fields: also compared; "frames" and "store" if features are added to the folder.
    """
    ignored = {"frames", "store", "scales", "base", "git", "jax"} - set(extra_fields)
    compared = {field.name for field in fields(FeatureMetadata)} - ignored
    return [
        f"{field.name}: {getattr(stored, field.name)} there, {getattr(expected, field.name)} here"
        for field in fields(FeatureMetadata)
        if field.name in compared and getattr(stored, field.name) != getattr(expected, field.name)
    ]


def _list_shards(folder: Path) -> list[Path]:
    """List the complete shards, ordered by number, then host."""
    return sorted((path for path in folder.iterdir() if SHARD_NAME.fullmatch(path.name)), key=_shard_number)


def _shard_number(shard: Path) -> tuple[int, int]:
    match = SHARD_NAME.fullmatch(shard.name)
    assert match is not None
    return int(match[1]), int(match[2])


def _open_reader(shard: Path) -> Any:
    return array_record.ArrayRecordReader(str(shard), READER_OPTIONS)


def _read_contents(shard: Path) -> dict[str, Any]:
    try:
        reader = _open_reader(shard)
        # For a truncated file, or one that is not ArrayRecord, the reader reports 0 records.
        if not (records := reader.num_records()):
            raise ValueError("no records")
        return json.loads(reader.read([records - 1])[0])
    except (RuntimeError, IndexError, ValueError, RecursionError) as error:
        raise _damaged(shard, error) from error


def _damaged(shard: Path, error: Exception) -> FeaturesError:
    return FeaturesError(f"{shard} is damaged ({error})", "remove it and run `calce cache_features` again")
