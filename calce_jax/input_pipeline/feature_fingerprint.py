"""Identification of the weights that make features, and checks of stored features against a run."""

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax

from calce_jax.config import RunConfig, packaged_path
from calce_jax.input_pipeline.feature_store import FeatureMetadata, FeaturesError, FeatureStore, diff_metadata
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.feature_codec import FeatureSource, StorageDtype, count_scales
from calce_jax.storage.provenance import git_revision

# Prefixes of the weights that features depend on.
FINGERPRINTED_PREFIXES: dict[FeatureSource, tuple[str, ...]] = {
    "vit": ("vit/",),
    "qformer": ("vit/", "ln_vision/", "qformer/"),
}
CHUNK_BYTES = 2**24
MAX_LISTED_VIDEOS = 5


def make_feature_metadata(
    config: RunConfig, model_config: CalceConfig, storage_dtype: StorageDtype, source: FeatureSource = "vit"
) -> FeatureMetadata:
    """Return the metadata of the features of a run.

    Args:
      config: of the run.
      model_config: sizes of its model.
      storage_dtype: of the values.
      source: "vit" or "qformer".

    Raises:
      FeaturesError: the base weights cannot be read; or `source` is "qformer" and `ln_vision` is trained, which changes
        the Q-Former's tokens at every step.
    """
    base, vit = config.weights.base, model_config.vit
    if source == "qformer" and config.model.ln_vision == "trained":
        raise FeaturesError(
            "config.model.ln_vision: must be 'frozen' to store the Q-Former's tokens, which change at every step "
            "otherwise, got 'trained'",
            "freeze it (--config.model.ln_vision=frozen), or store the tower's tokens (--of=vit)",
        )
    tokens, width = (
        (vit.num_tokens, vit.width)
        if source == "vit"
        else (model_config.qformer.query_tokens, model_config.qformer.width)
    )
    return FeatureMetadata(
        vision=weights_hash(packaged_path(base), source) if base else f"drawn from seed {config.seed}",
        size=config.model.size,
        frozen_dtype=config.model.frozen_dtype,
        compute_dtype=config.model.compute_dtype,
        image_size=vit.image_size,
        frames=config.data.frames,
        store=storage_dtype,
        tokens=tokens,
        width=width,
        scales=count_scales(width) if storage_dtype == "int8" else 0,
        of=source,
        means=vit.width if source == "qformer" else 0,
        base=base,
        git=git_revision(),
        jax=jax.__version__,
    )


def weights_hash(path: str | Path, source: FeatureSource = "vit") -> str:
    """Return the SHA-256 of the weights that features depend on: of the vision tower, or also of the Q-Former.

    It covers names, dtypes, shapes and bytes of these weights, so other files with the same weights have the same hash.

    Args:
      path: a safetensors file.
      source: "vit" or "qformer".

    Raises:
      FeaturesError: the file cannot be read, or has no vision tower.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            (header_bytes,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(header_bytes))
            if not any(name.startswith(FINGERPRINTED_PREFIXES["vit"]) for name in header):
                raise FeaturesError(
                    f"config.weights.base: {path} has no vision tower", "give a file with all weights of the model"
                )
            for name in sorted(name for name in header if name.startswith(FINGERPRINTED_PREFIXES[source])):
                tensor_info = header[name]
                digest.update(json.dumps([name, tensor_info["dtype"], tensor_info["shape"]]).encode())
                begin, end = tensor_info["data_offsets"]
                file.seek(8 + header_bytes + begin)
                for offset in range(begin, end, CHUNK_BYTES):
                    digest.update(file.read(min(CHUNK_BYTES, end - offset)))
    except FeaturesError:
        raise
    except (
        OSError,
        struct.error,
        ValueError,
        TypeError,
        LookupError,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        raise FeaturesError(
            f"config.weights.base: {path} cannot be read ({error})", "write it with `calce convert`"
        ) from error
    return digest.hexdigest()


def check_features(config: RunConfig, model_config: CalceConfig) -> None:
    """Check that `config.data.features`, if any, holds features of the run's own weights.

    Raises:
      FeaturesError: there are no features, or they are of another model; lists the fields that differ.
    """
    if not config.data.features:
        return
    stored = FeatureStore(config.data.features).metadata
    expected = make_feature_metadata(config, model_config, "float32", cast(FeatureSource, stored.of))
    mismatches = diff_metadata(stored, expected)
    if stored.frames < expected.frames:
        mismatches.append(f"frames: {stored.frames} there, {expected.frames} here")
    if mismatches:
        raise FeaturesError(
            f"{config.data.features}/features.json: these features (of {stored.base or 'a random model'}) are not "
            "those of this run",
            "run `calce cache_features` with its config and another --out, or set what they were made with:\n  "
            + "\n  ".join(mismatches),
        )


def check_videos(config: RunConfig, split: str, videos: Sequence[str]) -> None:
    """Check that every video of a split has features, if the run reads any.

    Args:
      config: of the run.
      split: its name, for the message.
      videos: ids of the videos of its queries.

    Raises:
      FeaturesError: gives the number of videos without features, and the first ids.
    """
    if not config.data.features:
        return
    missing = FeatureStore(config.data.features).videos_without_features(videos)
    if missing:
        examples = ", ".join(missing[:MAX_LISTED_VIDEOS]) + (", ..." if len(missing) > MAX_LISTED_VIDEOS else "")
        raise FeaturesError(
            f"{config.data.features}: {len(missing)} of the {len(set(videos))} videos of split {split} have no "
            f"features ({examples})",
            "run `calce cache_features` again, or read frames (--config.data.features=)",
        )
