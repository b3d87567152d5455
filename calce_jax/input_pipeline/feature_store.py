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
from calce_jax.storage.atomic_files import write_output

VERSION = 1
DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}
SHARD = re.compile(r"features-(\d+)-of-host-(\d+)\.array_record")
# Numbers that look random do not compress, and a record is read alone.
WRITING, READING = "group_size:1,uncompressed", "readahead_buffer_size:0,max_parallelism:0"


class FeaturesError(UserError):
    """Features that are missing, or not those of this run; the message names the folder, the field and the remedy."""


@dataclass(frozen=True)
class Made:
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
    version: int = VERSION

    @property
    def dtype(self) -> np.dtype:
        """Return what the values are stored in."""
        return np.dtype(DTYPES[self.store])

    @property
    def bytes_a_frame(self) -> int:
        """Return the size of a record."""
        return self.tokens * (self.width * self.dtype.itemsize + self.scales * 4) + self.means * 4


@dataclass(frozen=True)
class Clip:
    """The frames of a video that features are wanted of, in the order of time.

    Fields:
      video: id.
      indices: of the frames in the file.
      sums: CRC-32 of each frame's JPEG.
    """

    video: str
    indices: Sequence[int]
    sums: Sequence[int]


def sums_of(jpegs: Sequence[bytes]) -> list[int]:
    """Return what tells whether frames are the ones that were seen."""
    return [zlib.crc32(jpeg) for jpeg in jpegs]


class FeatureFolder:
    """Features by video and frame.

    It may be pickled, into worker processes for instance; each process opens the shards when it first reads.

    Attributes:
      folder: where they are.
      made: by what.

    Raises:
      FeaturesError: there are none in the folder, or of another version.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.made = Path(folder), read_made(folder)

    def read(self, clip: Clip) -> dict[str, np.ndarray]:
        """Return the values (T, P, D), of int8 the scales (T, P, G), and of a Q-Former the means (T, F) of a clip.

        Raises:
          FeaturesError: some are not there, or are those of other pictures.
        """
        known, made = self._places.get(clip.video, {}), self.made
        if missing := [index for index in clip.indices if index not in known]:
            raise FeaturesError(
                f"{len(missing)} of its {len(clip.indices)} frames have no features in {self.folder}",
                "run launch/cache_features.py with this config",
            )
        places = [known[index] for index in clip.indices]
        if any(place.sum != found for place, found in zip(places, clip.sums, strict=True)):
            raise FeaturesError(
                f"it was prepared anew since its features were stored in {self.folder}",
                "run launch/cache_features.py again",
            )
        values = np.empty((len(places), made.tokens, made.width), made.dtype)
        scales = np.empty((len(places), made.tokens, made.scales), np.float32)
        means = np.empty((len(places), made.means), np.float32)
        for row, record in enumerate(self._records(places)):
            at = 0
            for part in (values[row], scales[row], means[row]):
                part.reshape(-1).view(np.uint8)[:] = np.frombuffer(record, np.uint8, part.nbytes, at)
                at += part.nbytes
        found = {"values": values, "scale": scales, "means": means}
        return {name: array for name, array in found.items() if array.shape[-1]}

    def holds(self, clip: Clip) -> bool:
        """Tell whether all of a clip's frames are there, as they are."""
        known = self._places.get(clip.video, {})
        return all(
            index in known and known[index].sum == found for index, found in zip(clip.indices, clip.sums, strict=True)
        )

    def without(self, videos: Sequence[str]) -> list[str]:
        """Return those of the videos of which nothing is there, each once."""
        return [video for video in dict.fromkeys(videos) if video not in self._places]

    def squares(self) -> dict[str, float]:
        """Return the sums that the shards keep of what storing changed, see `Shard.add`."""
        total: dict[str, float] = {}
        for shard in _shards(self.folder):
            for name, value in _contents(shard)["squares"].items():
                total[name] = total.get(name, 0.0) + value
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "made": self.made}

    @cached_property
    def _places(self) -> dict[str, dict[int, "_Place"]]:
        """Where the record of every frame is, by video and index."""
        places: dict[str, dict[int, _Place]] = {}
        for shard in _shards(self.folder):
            record = 0
            for clip in _contents(shard)["clips"]:
                known = places.setdefault(clip["video"], {})
                for index, found in zip(clip["indices"], clip["sums"], strict=True):
                    known[index] = _Place(shard, record, found)
                    record += 1
        return places

    @cached_property
    def _readers(self) -> dict[Path, Any]:
        return {}

    def _records(self, places: Sequence["_Place"]) -> Iterator[bytes]:
        """Read records; those of a video lie in one shard, unless fewer of its frames were stored before."""
        found = {}
        for shard in dict.fromkeys(place.shard for place in places):
            if shard not in self._readers:
                self._readers[shard] = _reader(shard)
            try:
                found[shard] = iter(self._readers[shard].read([p.record for p in places if p.shard == shard]))
            except RuntimeError as error:  # a checksum is wrong
                raise _damaged(shard, error) from error
        for place in places:
            yield next(found[place.shard])


@dataclass(frozen=True)
class _Place:
    shard: Path
    record: int
    sum: int


class Shard:
    """A shard that is being written; it gets its name on `close`, and is gone unless that is called.

    Args:
      folder: it exists.
      number, host: of the shard.
    """

    def __init__(self, folder: Path, number: int, host: int):
        self.path = folder / f"features-{number:05d}-of-host-{host}.array_record"
        self._part = self.path.with_name(self.path.name + ".part")
        self._writer: Any = array_record.ArrayRecordWriter(str(self._part), WRITING)
        self._clips: list[dict[str, Any]] = []
        self._squares: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._clips)

    def add(self, clip: Clip, records: Sequence[bytes], squares: Mapping[str, float]) -> None:
        """Add a video.

        Args:
          clip: its frames.
          records: of each; values, then scales, then means.
          squares: sums of squares by name, which tell together what storing changed; they are added up.
        """
        for record in records:
            self._write(record)
        self._clips.append({"video": clip.video, "indices": list(clip.indices), "sums": list(clip.sums)})
        for name, value in squares.items():
            self._squares[name] = self._squares.get(name, 0.0) + value

    def close(self) -> None:
        """Write the contents, and give the shard its name.

        Raises:
          OSError: it cannot be written.
        """
        self._write(json.dumps({"clips": self._clips, "squares": self._squares}).encode())
        self._guarded(self._writer.close)
        os.replace(self._part, self.path)

    def drop(self) -> None:
        """Remove what is written so far; of a closed shard nothing."""
        with suppress(RuntimeError):  # on a full disk
            self._writer.close()
        self._part.unlink(missing_ok=True)

    def _write(self, record: bytes) -> None:
        self._guarded(self._writer.write, record)

    def _guarded(self, deed: Any, *given: Any) -> None:
        try:
            deed(*given)
        except RuntimeError as error:
            # ArrayRecord's way to say that the disk is full.
            number = errno.ENOSPC if os.strerror(errno.ENOSPC) in str(error) else errno.EIO
            raise OSError(
                number, f"cannot write {self.path} ({error}); make room and run the same command again"
            ) from error


def claim_features(folder: Path, made: Made, host: int) -> None:
    """Make the folder for features of this make, and remove what an interrupted run of this host left half done.

    Raises:
      FeaturesError: it holds features of another make.
      OSError: it cannot be written.
    """
    path = folder / "features.json"
    if path.exists():
        if wrong := differences(read_made(folder), made, ("frames", "store")):
            raise FeaturesError(
                f"{path}: these features were made by something else; choose another --out, or remove the folder:\n  "
                + "\n  ".join(wrong)
            )
    else:
        write_output(path, json.dumps(asdict(made), indent=2) + "\n")
    for part in folder.glob(f"features-*-of-host-{host}.array_record.part"):
        part.unlink()


def next_number(folder: Path) -> int:
    """Return the first number that no shard has."""
    return max((_number(shard)[0] for shard in _shards(folder)), default=-1) + 1


def read_made(folder: str | Path) -> Made:
    """Read what made the features of a folder.

    Raises:
      FeaturesError: there are none, or of another version, or what says so is damaged.
    """
    path = Path(folder) / "features.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["version"] != VERSION:
            raise FeaturesError(
                f"{path} has version {about['version']}, this program reads {VERSION}",
                "run launch/cache_features.py with another --out",
            )
        return Made(**about)
    except FileNotFoundError:
        raise FeaturesError(
            f"there are no features in {folder}: {path} is missing", f"run launch/cache_features.py with --out={folder}"
        ) from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FeaturesError(
            f"{path} is damaged ({error})", "remove the folder and run launch/cache_features.py again"
        ) from error


def differences(there: Made, here: Made, more: Sequence[str] = ()) -> list[str]:
    """List the fields in which features are not those that a run would make: "vision: 3f.. there, 9a.. here".

    Args:
      there: what made them.
      here: what the run would make.
      more: fields that need not differ in vain: "frames" and "store" where the same features are to be added to.
    """
    compared = {field.name for field in fields(Made)} - {"frames", "store", "scales", "base", "git", "jax"} | set(more)
    return [
        f"{field.name}: {getattr(there, field.name)} there, {getattr(here, field.name)} here"
        for field in fields(Made)
        if field.name in compared and getattr(there, field.name) != getattr(here, field.name)
    ]


def _shards(folder: Path) -> list[Path]:
    """List the whole shards, in the order in which they were begun."""
    return sorted((path for path in folder.iterdir() if SHARD.fullmatch(path.name)), key=_number)


def _number(shard: Path) -> tuple[int, int]:
    found = SHARD.fullmatch(shard.name)
    assert found is not None
    return int(found[1]), int(found[2])


def _reader(shard: Path) -> Any:
    return array_record.ArrayRecordReader(str(shard), READING)


def _contents(shard: Path) -> dict[str, Any]:
    try:
        reader = _reader(shard)
        # Of a file that is cut off, or no ArrayRecord, the reader says that it has no records.
        if not (records := reader.num_records()):
            raise ValueError("no records")
        return json.loads(reader.read([records - 1])[0])
    except (RuntimeError, IndexError, ValueError) as error:
        raise _damaged(shard, error) from error


def _damaged(shard: Path, error: Exception) -> FeaturesError:
    return FeaturesError(f"{shard} is damaged ({error})", "remove it and run `calce cache_features` again")
