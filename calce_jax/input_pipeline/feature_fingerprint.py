"""What sees the frames of a run, and whether stored features are what it would see."""

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import jax

from calce_jax.config import RunConfig, packaged_path
from calce_jax.input_pipeline.feature_store import FeatureFolder, FeaturesError, Made, differences
from calce_jax.models.calce import CalceConfig
from calce_jax.models.feature_codec import Of, Store, scales
from calce_jax.storage.provenance import git_revision

# The weights that decide what is seen.
PARTS: dict[Of, tuple[str, ...]] = {"vit": ("vit/",), "qformer": ("vit/", "ln_vision/", "qformer/")}
CHUNK = 2**24
SHOWN = 5


def made_by(config: RunConfig, sizes: CalceConfig, store: Store, of: Of = "vit") -> Made:
    """Return what features of a run's tower are made by, or of its Q-Former.

    Raises:
      FeaturesError: the base weights cannot be read, or the Q-Former's words change as the run learns.
    """
    base, vit = config.weights.base, sizes.vit
    if of == "qformer" and config.model.ln_vision == "trained":
        raise FeaturesError(
            "config.model.ln_vision: 'trained', so what the Q-Former says of a frame changes at every step",
            "leave it frozen (--config.model.ln_vision=frozen), or keep what the tower gives (--of=vit)",
        )
    tokens, width = (vit.tokens, vit.width) if of == "vit" else (sizes.qformer.queries, sizes.qformer.width)
    return Made(
        vision=weights_hash(packaged_path(base), of) if base else f"drawn from seed {config.seed}",
        size=config.model.size,
        frozen_dtype=config.model.frozen_dtype,
        compute_dtype=config.model.compute_dtype,
        image_size=vit.image_size,
        frames=config.data.frames,
        store=store,
        tokens=tokens,
        width=width,
        scales=scales(width) if store == "int8" else 0,
        of=of,
        means=vit.width if of == "qformer" else 0,
        base=base,
        git=git_revision(),
        jax=jax.__version__,
    )


def weights_hash(path: str | Path, of: Of = "vit") -> str:
    """Return the SHA-256 of the vision tower in a safetensors file, or of all that it and the Q-Former have.

    Names, dtypes, shapes and bytes count, so another file with the same weights has the same.

    Raises:
      FeaturesError: there is no such file, or it has no tower.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
            if not any(name.startswith(PARTS["vit"]) for name in header):
                raise FeaturesError(
                    f"config.weights.base: {path} has no vision tower", "give the whole model's weights"
                )
            for name in sorted(name for name in header if name.startswith(PARTS[of])):
                about = header[name]
                digest.update(json.dumps([name, about["dtype"], about["shape"]]).encode())
                begin, end = about["data_offsets"]
                file.seek(8 + length + begin)
                for at in range(begin, end, CHUNK):
                    digest.update(file.read(min(CHUNK, end - at)))
    except (OSError, struct.error, json.JSONDecodeError) as error:
        raise FeaturesError(
            f"config.weights.base: {path} cannot be read ({error})", "put the converted weights there"
        ) from error
    return digest.hexdigest()


def check_features(config: RunConfig, sizes: CalceConfig) -> None:
    """See that the features a run is to read are those its tower would give; without any there is nothing to see.

    Raises:
      FeaturesError: they are not there, or something else made them; lists the fields that differ.
    """
    if not config.data.features:
        return
    there = FeatureFolder(config.data.features).made
    here = made_by(config, sizes, "float32", cast(Of, there.of))
    wrong = differences(there, here)
    if there.frames < here.frames:
        wrong.append(f"frames: {there.frames} there, {here.frames} here")
    if wrong:
        raise FeaturesError(
            f"{config.data.features}/features.json: these features (of {there.base or 'a random model'}) are not those "
            "of this run; run launch/cache_features.py with its config and another --out, or set what they were made "
            "with:\n  " + "\n  ".join(wrong)
        )


def check_videos(config: RunConfig, split: str, videos: Sequence[str]) -> None:
    """See that there are features of every video that a split asks about, before the first batch is made.

    Raises:
      FeaturesError: says how many have none, and names some.
    """
    if not config.data.features:
        return
    missing = FeatureFolder(config.data.features).without(videos)
    if missing:
        named = ", ".join(missing[:SHOWN]) + (", ..." if len(missing) > SHOWN else "")
        raise FeaturesError(
            f"{config.data.features}: {len(missing)} of the {len(set(videos))} videos of split {split} have no "
            f"features ({named})",
            "run launch/cache_features.py again, or read frames (--config.data.features=)",
        )
