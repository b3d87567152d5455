"""Fixtures of tests about stored features."""

import functools
from dataclasses import replace

import pytest

from calce_jax.datasets.tables import build_tables
from calce_jax.inference import extract_features as extract_features_module
from tests.helpers.search_stages import make_stages
from tests.helpers.stored_features import FRAMES, TRAIN, VAL, extract, make_video


@pytest.fixture(scope="package")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    build_tables(folder, "shapes", {"train": TRAIN, "val": VAL}, make_video)
    return folder


@pytest.fixture(scope="package")
def base(prepared):
    """The smallest model, with the config of stage 1."""
    stage, _ = make_stages()
    data = replace(stage.config.data, directory=str(prepared), frames=FRAMES, batch=2, eval_batch=2)
    return replace(stage, config=replace(stage.config, data=data))


@pytest.fixture(scope="package")
def compiled_once():
    """Compile the extraction once for each dtype."""
    with pytest.MonkeyPatch.context() as patch:
        make_extract_fn = functools.cache(extract_features_module.make_extract_fn)
        patch.setattr(extract_features_module, "make_extract_fn", make_extract_fn)
        yield


@pytest.fixture(scope="package")
def extracted(base, compiled_once, tmp_path_factory):
    """Features of the same videos in each dtype: the folder, and the result of the extraction."""
    return {
        store: (out := tmp_path_factory.mktemp(store), extract(base, out, store, videos_per_shard=3))
        for store in ("float32", "bfloat16", "int8")
    }
