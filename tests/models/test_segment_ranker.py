"""The two layers that rank segments, and the pooling before them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.models.segment_ranker import VECTOR_WIDTH, init_segment_ranker, pool_queries, pooled_frames


def test_a_long_segment_has_twenty_frames_from_end_to_end():
    assert pooled_frames(3).tolist() == [0, 1, 2]
    frames = pooled_frames(75)
    assert (frames[0], frames[-1], len(frames)) == (0, 74, 20)
    assert set(np.diff(frames).tolist()) <= {3, 4}


@pytest.mark.parametrize(("tokens", "groups"), [(4, 4), (32, 4), (2, 2)])
def test_query_tokens_are_averaged_in_groups_of_neighbours(tokens, groups):
    queries = np.arange(5 * tokens * 3, dtype=np.float32).reshape(5, tokens, 3)
    pooled = pool_queries(queries)
    assert pooled.shape == (5, groups, 3)
    size = tokens // groups
    np.testing.assert_allclose(pooled[2, 1], queries[2, size : 2 * size].mean(axis=0), rtol=1e-6)


def test_bfloat16_features_are_averaged_in_float32():
    queries = jnp.full((1, 32, 4), 1.0, jnp.bfloat16).at[0, 0].set(1.0078125)
    np.testing.assert_allclose(pool_queries(np.asarray(queries))[0, 0], 1 + 0.0078125 / 8, rtol=1e-7)


def test_vectors_have_length_one_and_the_bias_counts():
    ranker = init_segment_ranker(6, 5, jax.random.key(0))
    images = ranker.embed_images(np.random.default_rng(0).normal(size=(3, 2, 6)).astype(np.float32))
    assert images.shape == (3, 2, VECTOR_WIDTH)
    np.testing.assert_allclose(np.linalg.norm(images, axis=-1), 1.0, rtol=1e-5)
    direction = jnp.eye(VECTOR_WIDTH)[7]
    biased = replace(ranker, text_bias=1e4 * direction)
    texts = biased.embed_texts(np.ones((1, 5), np.float32))
    np.testing.assert_allclose(texts[0], direction, atol=1e-3)
