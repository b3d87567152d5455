"""A folder of stored features: what was seen of every frame of a prepared folder's videos.

    DIR/features.json                        what made them (`Made`)
    DIR/features-00000-of-host-0.array_record   one record a frame, all frames of a video together, then the contents

The contents, a shard's last record, say which frames of which videos the others are, as JSON. A shard gets its name
when it is whole. Where two shards know a frame, because its video was prepared anew, the later one counts.

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
STORAGE_DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
SHARD_NAME = re.compile(r"features-(\d+)-of-host-(\d+)\.array_record")
# Numbers that look random do not compress, and a record is read alone.
WRITER_OPTIONS, READER_OPTIONS = "group_size:1,uncompressed", "readahead_buffer_size:0,max_parallelism:0"


class FeaturesError(UserError):
    """Features that are missing, or not those of this run; the message names the folder, the field and the remedy."""


@dataclass(frozen=True)
class FeatureMetadata:
    """What made the features of a folder, and their shapes.

    Fields:
      vision: names the weights of what saw them.
      size, frozen_dtype, compute_dtype: of the model.
      image_size: pixels of a frame's side.
      frames: of a video.
      store: "float32", "bfloat16" or "int8".
      tokens, width, scales: P, D and G; without int8 there are no scales.
      of: "vit", the tower's tokens; or "qformer", what the Q-Former says of these through the base's `ln_vision`.
      means: F, for the Q-Former alone: the width of what stage 1 tells frames apart by, float32, one a frame.
      base, git, jax: for people: the file of the weights, the revision of the code, the version of jax.
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
        """Return what the values are stored in."""
        return np.dtype(STORAGE_DTYPES[self.store])

    @property
    def bytes_per_frame(self) -> int:
        """Return the size of a record."""
        return self.tokens * (self.width * self.dtype.itemsize + self.scales * 4) + self.means * 4


@dataclass(frozen=True)
class FrameKeys:
    """The frames of a video that features are wanted of, in the order of time.

    Fields:
      video: id.
      indices: of the frames in the file.
      checksums: CRC-32 of each frame's JPEG.
    """

    video: str
    indices: Sequence[int]
    checksums: Sequence[int]


def checksums(jpegs: Sequence[bytes]) -> list[int]:
    """Return what tells whether frames are the ones that were seen."""
    return [zlib.crc32(jpeg) for jpeg in jpegs]


class FeatureStore:
    """Features by video and frame.

    It may be pickled, into worker processes for instance; each process opens the shards when it first reads.

    Attributes:
      folder: where they are.
      metadata: by what.

    Raises:
      FeaturesError: there are none in the folder, or of another version.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.metadata = Path(folder), read_metadata(folder)

    def read(self, frame_keys: FrameKeys) -> dict[str, np.ndarray]:
        """Return the values (T, P, D), of int8 the scales (T, P, G), and of a Q-Former the means (T, F) of a clip.

        Raises:
          FeaturesError: some are not there, or are those of other pictures.
        """
        locations, metadata = self._locations.get(frame_keys.video, {}), self.metadata
        if missing := [index for index in frame_keys.indices if index not in locations]:
            raise FeaturesError(
                f"{len(missing)} of its {len(frame_keys.indices)} frames have no features in {self.folder}",
                "run launch/cache_features.py with this config",
            )
        wanted = [locations[index] for index in frame_keys.indices]
        if any(place.checksum != found for place, found in zip(wanted, frame_keys.checksums, strict=True)):
            raise FeaturesError(
                f"it was prepared anew since its features were stored in {self.folder}",
                "run launch/cache_features.py again",
            )
        values = np.empty((len(wanted), metadata.tokens, metadata.width), metadata.dtype)
        scales = np.empty((len(wanted), metadata.tokens, metadata.scales), np.float32)
        means = np.empty((len(wanted), metadata.means), np.float32)
        for row, record in enumerate(self._read_records(wanted)):
            offset = 0
            for part in (values[row], scales[row], means[row]):
                part.reshape(-1).view(np.uint8)[:] = np.frombuffer(record, np.uint8, part.nbytes, offset)
                offset += part.nbytes
        found = {"values": values, "scale": scales, "means": means}
        return {name: array for name, array in found.items() if array.shape[-1]}

    def has_frames(self, frame_keys: FrameKeys) -> bool:
        """Tell whether all of a clip's frames are there, as they are."""
        locations = self._locations.get(frame_keys.video, {})
        return all(
            index in locations and locations[index].checksum == checksum
            for index, checksum in zip(frame_keys.indices, frame_keys.checksums, strict=True)
        )

    def videos_without_features(self, videos: Sequence[str]) -> list[str]:
        """Return those of the videos of which nothing is there, each once."""
        return [video for video in dict.fromkeys(videos) if video not in self._locations]

    def squared_sums(self) -> dict[str, float]:
        """Return the sums that the shards keep of what storing changed, see `Shard.add`."""
        total: dict[str, float] = {}
        for shard in _list_shards(self.folder):
            for name, value in _read_contents(shard)["squares"].items():
                total[name] = total.get(name, 0.0) + value
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "made": self.metadata}

    @cached_property
    def _locations(self) -> dict[str, dict[int, "_RecordLocation"]]:
        """Where the record of every frame is, by video and index."""
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
        """Read records; those of a video lie in one shard, unless fewer of its frames were stored before."""
        iterators = {}
        for shard in dict.fromkeys(place.shard for place in locations):
            if shard not in self._readers:
                self._readers[shard] = _open_reader(shard)
            try:
                iterators[shard] = iter(self._readers[shard].read([p.record for p in locations if p.shard == shard]))
            except RuntimeError as error:  # a checksum is wrong
                raise _damaged(shard, error) from error
        for place in locations:
            yield next(iterators[place.shard])


@dataclass(frozen=True)
class _RecordLocation:
    shard: Path
    record: int
    checksum: int


class ShardWriter:
    """A shard that is being written; it gets its name on `close`, and is gone unless that is called.

    Args:
      folder: it exists.
      number, host: of the shard.
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
          records: of each; values, then scales, then means.
          squared_sums: sums of squares by name, which tell together what storing changed; they are added up.
        """
        for record in records:
            self._write(record)
        self._clips.append(
            {"video": frame_keys.video, "indices": list(frame_keys.indices), "sums": list(frame_keys.checksums)}
        )
        for name, value in squared_sums.items():
            self._squared_sums[name] = self._squared_sums.get(name, 0.0) + value

    def close(self) -> None:
        """Write the contents, and give the shard its name.

        Raises:
          OSError: it cannot be written.
        """
        self._write(json.dumps({"clips": self._clips, "squares": self._squared_sums}).encode())
        self._with_disk_errors(self._writer.close)
        os.replace(self._partial_path, self.path)

    def discard(self) -> None:
        """Remove what is written so far; of a closed shard nothing."""
        with suppress(RuntimeError):  # on a full disk
            self._writer.close()
        self._partial_path.unlink(missing_ok=True)

    def _write(self, record: bytes) -> None:
        self._with_disk_errors(self._writer.write, record)

    def _with_disk_errors(self, operation: Any, *args: Any) -> None:
        try:
            operation(*args)
        except RuntimeError as error:
            # ArrayRecord's way to say that the disk is full.
            number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(
                number, f"cannot write {self.path} ({error}); make room and run the same command again"
            ) from error


def init_feature_folder(folder: Path, metadata: FeatureMetadata, host: int) -> None:
    """Make the folder for features of this make, and remove what an interrupted run of this host left half done.

    Raises:
      FeaturesError: it holds features of another make.
      OSError: it cannot be written.
    """
    path = folder / "features.json"
    if path.exists():
        if mismatches := diff_metadata(read_metadata(folder), metadata, ("frames", "store")):
            raise FeaturesError(
                f"{path}: these features were made by something else; choose another --out, or remove the folder:\n  "
                + "\n  ".join(mismatches)
            )
    else:
        write_atomic(path, json.dumps(asdict(metadata), indent=2) + "\n")
    for part in folder.glob(f"features-*-of-host-{host}.array_record.part"):
        part.unlink()


def next_shard_number(folder: Path) -> int:
    """Return the first number that no shard has."""
    return max((_shard_number(shard)[0] for shard in _list_shards(folder)), default=-1) + 1


def read_metadata(folder: str | Path) -> FeatureMetadata:
    """Read what made the features of a folder.

    Raises:
      FeaturesError: there are none, or of another version, or what says so is damaged.
    """
    path = Path(folder) / "features.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != FORMAT_VERSION:
            raise FeaturesError(
                f"{path} has version {content['version']}, this program reads {FORMAT_VERSION}",
                "run launch/cache_features.py with another --out",
            )
        return FeatureMetadata(**content)
    except FileNotFoundError:
        raise FeaturesError(
            f"there are no features in {folder}: {path} is missing", f"run launch/cache_features.py with --out={folder}"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FeaturesError(
            f"{path} is damaged ({error})", "remove the folder and run launch/cache_features.py again"
        ) from error


def diff_metadata(stored: FeatureMetadata, expected: FeatureMetadata, extra_fields: Sequence[str] = ()) -> list[str]:
    """List the fields in which features are not those that a run would make: "vision: 3f.. there, 9a.. here".

    Args:
      stored: what made them.
      expected: what the run would make.
      extra_fields: fields that need not differ in vain: "frames" and "store" where the same features are to be added to.
    """
    compared = {field.name for field in fields(FeatureMetadata)} - {
        "frames",
        "store",
        "scales",
        "base",
        "git",
        "jax",
    } | set(extra_fields)
    return [
        f"{field.name}: {getattr(stored, field.name)} there, {getattr(expected, field.name)} here"
        for field in fields(FeatureMetadata)
        if field.name in compared and getattr(stored, field.name) != getattr(expected, field.name)
    ]


def _list_shards(folder: Path) -> list[Path]:
    """List the whole shards, in the order in which they were begun."""
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
        # Of a file that is cut off, or no ArrayRecord, the reader says that it has no records.
        if not (records := reader.num_records()):
            raise ValueError("no records")
        return json.loads(reader.read([records - 1])[0])
    except (RuntimeError, IndexError, ValueError) as error:
        raise _damaged(shard, error) from error


def _damaged(shard: Path, error: Exception) -> FeaturesError:
    return FeaturesError(f"{shard} is damaged ({error})", "remove it and run `calce cache_features` again")
