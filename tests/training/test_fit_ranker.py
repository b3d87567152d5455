"""The ranker learns which words are seen in which frames, and nothing from padding."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.models.segment_ranker import MAX_FRAMES, init_segment_ranker
from calce_jax.training import fit_ranker as module
from calce_jax.training.fit_ranker import PairBatch, RankerData, contrastive_loss, fit_ranker, recall_of_own_video

THINGS, WIDTH = 24, 12


def make_data(seed: int, count: int = 96) -> RankerData:
    """Videos of three frames, of which the second shows one of 24 things; a query names it. Other frames are noise."""
    codes = np.random.default_rng(0).normal(size=(2, THINGS, WIDTH)).astype(np.float32)  # of frames, of words
    rng = np.random.default_rng(seed)
    things = np.arange(count) % THINGS
    pooled = np.zeros((count, MAX_FRAMES, 2, WIDTH), np.float16)
    pooled[:, :3] = 3.0 + 0.3 * rng.normal(size=(count, 3, 2, WIDTH))
    pooled[:, 1, 0] += codes[0, things]
    mask = np.zeros((count, MAX_FRAMES), bool)
    mask[:, :3] = True
    windows = np.zeros_like(mask)
    windows[:, 1] = True
    return RankerData(pooled, mask, codes[1, things], np.arange(count), windows)


@pytest.mark.release
def test_what_is_seen_in_the_window_of_a_query_is_found_in_other_videos():
    ranker = fit_ranker(make_data(1), seed=0, steps=300)
    held_out = make_data(2, THINGS)
    assert recall_of_own_video(ranker, held_out, [1])[1] >= 85
    unfitted = fit_ranker(make_data(1), seed=0, steps=1)
    assert recall_of_own_video(unfitted, held_out, [1])[1] <= 40


def test_padded_frames_have_no_influence():
    data = make_data(1)
    padded = data.pooled.copy()
    padded[~data.frame_mask] = 1000.0
    one, other = (fit_ranker(of, seed=3, steps=5) for of in (data, replace(data, pooled=padded)))
    np.testing.assert_array_equal(one.image_kernel, other.image_kernel)
    assert recall_of_own_video(one, data, [1, 5]) == recall_of_own_video(one, replace(data, pooled=padded), [1, 5])


@pytest.mark.release
def test_the_seed_decides():
    data = make_data(1)
    first, second, other = (fit_ranker(data, seed=seed, steps=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.text_kernel, second.text_kernel)
    assert not np.array_equal(first.text_kernel, other.text_kernel)


def test_the_fitted_layer_takes_what_the_qformer_gives(monkeypatch):
    """Fitting works on values of mean 0 and deviation 1; the layer returned undoes that."""
    data = make_data(1)
    kernels = []

    def record(*sizes):
        kernels.append(np.asarray(init_segment_ranker(*sizes).image_kernel))
        return init_segment_ranker(*sizes)

    monkeypatch.setattr(module, "init_segment_ranker", record)
    ranker = fit_ranker(data, seed=0, steps=1)
    present = data.pooled[data.frame_mask].astype(np.float32)
    mean, deviation = present.mean(axis=(0, 1)), present.std(axis=(0, 1)) + 1e-3
    scaled = ((present - mean) / deviation) @ (np.asarray(ranker.image_kernel) * deviation[:, None])
    offset = present @ np.asarray(ranker.image_kernel) + np.asarray(ranker.image_bias) - scaled
    # One step of Adam moves a bias of zero and a weight by its rate.
    np.testing.assert_allclose(np.abs(offset), module.PEAK_LEARNING_RATE, atol=2e-4)
    moved = np.abs(np.asarray(ranker.image_kernel) * deviation[:, None] - kernels[0]).max()
    assert moved == pytest.approx(module.PEAK_LEARNING_RATE, rel=0.01)


@pytest.mark.slow
def test_other_rows_of_the_same_video_are_no_negatives():
    data = make_data(1, 4)
    params = module._Scaled(fit_ranker(data, seed=0, steps=1), jnp.float32(1.0))
    arrays = dict(frame_mask=data.frame_mask, word_means=data.word_means, window_mask=data.window_mask)
    pooled = data.pooled.astype(np.float32)
    alone = contrastive_loss(params, PairBatch(pooled, **arrays, video=np.zeros(4, int)))
    assert float(alone) == pytest.approx(0.0, abs=1e-5)
    assert float(contrastive_loss(params, PairBatch(pooled, **arrays, video=np.arange(4)))) > 0.5
