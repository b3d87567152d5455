"""Models that are opened: what both stages of a search hold together, and what each has of its own."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from calce_jax.checkpoints import restore
from calce_jax.inference.trained_run import load_base_model
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.load_searcher import open_stages


@pytest.fixture
def read(monkeypatch):
    """How many tensors of weights each call reads."""
    counts, load_params = [], restore.load_params

    def count(path, leaves, skipped):
        counts.append(len(leaves) - len(skipped))
        return load_params(path, leaves, skipped)

    monkeypatch.setattr(restore, "load_params", count)
    return counts


def test_frozen_weights_of_both_stages_are_read_once(read):
    """At full size a second copy is 8 GB, even if it is dropped at once."""
    first, second = open_stages()
    assert first.frozen is second.frozen
    assert first.trainable is not second.trainable
    trained_in_base = read[1]
    assert 0 < trained_in_base < 10 < read[0]


@pytest.mark.parametrize(
    ("same", "change"),
    [
        (True, lambda config: replace(config, seed=config.seed + 1)),
        (False, lambda config: replace(config, model=replace(config.model, frozen_dtype="bfloat16"))),
        (False, lambda config: replace(config, mesh="data")),
    ],
)
def test_other_frozen_weights_are_loaded(same, change):
    first = load_base_model(tiny_config(1))
    second = load_base_model(change(tiny_config(2)), other_stage=first)
    assert (second.frozen is first.frozen) == same


@pytest.mark.slow
def test_weights_that_are_drawn_are_shared_by_runs_of_one_seed():
    config = replace(tiny_config(1), seed=0)
    config = replace(config, weights=replace(config.weights, base=""))
    first, other = load_base_model(config), replace(config, seed=1)
    assert load_base_model(replace(other, seed=0), other_stage=first).frozen is first.frozen
    drawn = load_base_model(other, other_stage=first).frozen
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (first.frozen, drawn)), strict=True))
