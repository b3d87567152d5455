"""DPC-KNN against recorded clusterings of the original, and what holds by construction."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.models.keyframes.dpc_knn import dpc_knn
from tests.helpers.recordings_io import load_recording

# A pair, a triple, a loner and another pair on a line.
LINE = np.array([0.0, 0.1, 5.0, 5.1, 5.3, 9.0, 20.0, 20.4], np.float32)[:, None]


@functools.partial(jax.jit, static_argnames="clusters")
def cluster_batch(features, present, far, noise, *, clusters):
    one = functools.partial(dpc_knn, clusters=clusters)
    return jax.vmap(lambda f, p, a, n: one(f, p, far_mask=a, noise=n))(features, present, far, noise)


compiled = jax.jit(dpc_knn, static_argnames="clusters")


def cluster(features, present=None, **kwargs):
    features = jnp.asarray(features, jnp.float32)
    present = jnp.ones(len(features), bool) if present is None else jnp.asarray(present, bool)
    return np.asarray(compiled(features, present, **kwargs))


def scene_features(frames, *, width=6, seed=0):
    """Return features (frames, width) with a new centre every five frames and small noise around it."""
    rng = np.random.default_rng(seed)
    scenes = np.repeat(rng.normal(size=(-(-frames // 5), width)), 5, axis=0)[:frames]
    return (2 * scenes + 0.3 * rng.normal(size=(frames, width))).astype(np.float32)


def cluster_with_loops(features, clusters, neighbours, noise=0.0):
    """Return the same clustering in float64, by Python loops, without masks."""
    n, width = features.shape
    gaps = features[:, None].astype(np.float64) - features[None]
    distance = np.sqrt((gaps**2).sum(-1) / width)
    density = np.exp(-np.mean(np.sort(distance)[:, :neighbours] ** 2, -1)) + noise * 1e-6
    score = []
    for i in range(n):
        denser = [distance[i, j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * (min(denser) if denser else distance.max()))
    centres = sorted(range(n), key=lambda i: -score[i])[:clusters]
    return [centres.index(i) if i in centres else int(np.argmin(distance[centres, i])) for i in range(n)]


@pytest.mark.slow
def test_recorded_clusterings(shared):
    """Equal wherever the recorded ids do not depend on ties.

    Masked frames all score 0, so where some must serve as centres their ranks depend on the library's sort. The ids of
    all unmasked frames must agree.
    """
    cases = json.loads((shared / "golden/04_cluster_meta.json").read_text())
    arrays = load_recording(shared, "04_cluster")
    robust = {c["case"].split("_")[0] for c in cases if c.get("robust_to_1e-6_perturbation")}
    differ, masked_differ, tied = set(), set(), set()
    for case in cases:
        name, masking, _ = case["case"].split("_")
        features = arrays[f"{name}_x"]
        far = arrays[f"{name}_mask"] == 0 if masking == "mask" else np.zeros(features.shape[:2], bool)
        noise = arrays.get(f"{case['case']}_noise", np.zeros(features.shape[:2], np.float32))
        got = np.asarray(cluster_batch(features, np.ones_like(far), far, noise, clusters=case["cluster_num"]))
        wrong = got != arrays[f"{case['case']}_idx_cluster"]
        if wrong.any():
            kind = tied if name not in robust else differ if wrong[~far].any() else masked_differ
            kind.add(case["case"])
    print(f"{len(cases)} clusterings; differ by ties: {sorted(tied)}, in masked frames: {sorted(masked_differ)}")
    assert not differ
    # In all these cases fewer frames are unmasked than there are clusters.
    assert masked_differ <= {"c1_mask_zero", "c1_mask_rec", "c9_mask_zero", "c9_mask_rec"}


@pytest.mark.parametrize(("clusters", "neighbours"), [(6, 5), (5, 5), (4, 2), (3, 1), (2, 1)])
def test_clusters_equal_those_of_plain_loops(clusters, neighbours):
    rng = np.random.default_rng(clusters)
    features = rng.normal(size=(14, 3)).astype(np.float32)
    # Mutual nearest neighbours are equally dense for small K; noise this large breaks ties alike in both precisions.
    noise = 1e3 * rng.random(14).astype(np.float32)
    expected = cluster_with_loops(features, clusters, neighbours, noise)
    assert cluster(features, clusters=clusters, noise=jnp.asarray(noise)).tolist() == expected


def test_by_hand():
    # For two clusters K is 1: the nearest frame is the frame itself, all are equally dense and score the widest
    # distance, and the first two are the centres.
    assert cluster(LINE, clusters=2).tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert cluster(LINE, clusters=5).tolist() == cluster_with_loops(LINE, 5, 5)


def test_frames_that_are_not_present_have_no_influence():
    features = scene_features(20)
    alone = cluster(features, clusters=5)
    for padded in (21, 33):
        padded_features = np.full((padded, 6), 1e3, np.float32)
        padded_features[:20] = features
        got = cluster(padded_features, np.arange(padded) < 20, clusters=5)
        assert np.array_equal(got[:20], alone)
        assert (got[20:] == -1).all()
    holes = np.random.default_rng(3).random(20) < 0.6
    assert np.array_equal(cluster(features, holes, clusters=5)[holes], cluster(features[holes], clusters=5))


def test_still_shots_tie_exactly_however_they_are_padded():
    still = np.repeat(scene_features(10, width=7)[::5], [9, 11], axis=0)
    alone = cluster(still, clusters=6)
    padded = np.concatenate([still, np.zeros((7, 7), np.float32)])
    assert np.array_equal(cluster(padded, np.arange(27) < 20, clusters=6)[:20], alone)
    assert np.array_equal(cluster(np.ones((5, 3)), clusters=3), [0, 1, 2, 0, 0])


@pytest.mark.parametrize("present", [0, 1, 3, 4])
def test_fewer_frames_than_clusters_are_clusters_of_their_own(present):
    got = cluster(scene_features(12), np.arange(12) < present, clusters=8)
    assert sorted(got[:present].tolist()) == list(range(present))
    assert (got[present:] == -1).all()


def test_masked_the_originals_way():
    features = scene_features(20)
    far = np.zeros(20, bool)
    far[[2, 7, 8]] = True
    got = cluster(features, clusters=5, far_mask=jnp.asarray(far))
    assert (got[far] == 0).all()
    # Masked frames do not shape the others' clusters, so ignoring them gives the same ones here.
    assert np.array_equal(got[~far], cluster(features, ~far, clusters=5)[~far])


def test_clusters_do_not_depend_on_the_batch():
    features = np.stack([scene_features(15, seed=s) for s in range(3)])
    present, far = np.ones((3, 15), bool), np.zeros((3, 15), bool)
    noise = np.zeros((3, 15), np.float32)
    batched = cluster_batch(features, present, far, noise, clusters=5)
    for i in range(3):
        assert np.array_equal(batched[i], cluster(features[i], clusters=5))
    assert np.array_equal(batched, cluster_batch(features, present, far, noise, clusters=5))
