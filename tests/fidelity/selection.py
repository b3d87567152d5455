"""04 to 06: DPC-KNN clusters, and the frame selection of both stages."""

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.models.keyframes.borders import dilate
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.keyframes.compress import compress
from calce_jax.models.keyframes.dpc_knn import dpc_knn
from calce_jax.models.keyframes.fine import MAX_ELECTED_CLUSTERS, select_fine
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.text.prompt import mentions_speech
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Group

# With fewer clusters at most two nearest neighbours count, and mutual neighbours then have equal densities.
NO_TIES = 5
ROBUST = "robust_to_1e-6_perturbation"

coarse = jax.jit(select_coarse, static_argnames=("mode", "clusters", "dilation", "behaviour"))
fine = jax.jit(select_fine, static_argnames=("clusters", "dilation", "filter_dilation", "behaviour"))
compress_plan = jax.jit(compress)


@functools.partial(jax.jit, static_argnames=("clusters", "neighbours"))
def cluster_videos(
    features: jax.Array, far: jax.Array, noise: jax.Array, *, clusters: int, neighbours: int
) -> jax.Array:
    """Return the cluster (B, T) of every frame of videos (B, T, D) without padding."""

    def cluster_video(features: jax.Array, far: jax.Array, noise: jax.Array) -> jax.Array:
        frame_mask = jnp.ones(features.shape[:1], bool)
        return dpc_knn(features, frame_mask, clusters=clusters, neighbours=neighbours, far_mask=far, noise=noise)

    return jax.vmap(cluster_video)(features, far, noise)


def clusters(folder: RecordingFolder) -> Iterator[Group]:
    """Compare clusters with the recorded noise and masks.

    Masked frames all score 0. Where some must be cluster centres, because there are fewer unmasked frames than
    clusters, the original's choice among them depends on its library; of these cases the unmasked frames must agree,
    and the masked ones are compared as ties.
    """
    arrays, cases = folder.arrays("04_cluster"), folder.json("04_cluster_meta")
    group = Group("04_cluster")
    yield group
    robust = {case["case"].rsplit("_", 1)[0] for case in cases if case.get(ROBUST)}
    for case in cases:
        name, masking = case["case"], case["case"].split("_")[1]
        tied, scarce = name.rsplit("_", 1)[0] not in robust, False
        with group.case(name, tied=tied) as compared:
            if case["error"]:
                # The original raises where there are fewer frames than clusters, and nowhere else.
                compared.same(case["N"] < case["cluster_num"], True, "raises")
                continue
            features = arrays[f"{name.split('_')[0]}_x"]
            zeros = np.zeros(features.shape[:2])
            far = arrays[f"{name.split('_')[0]}_mask"] == 0 if masking == "mask" else zeros > 0
            noise = arrays.get_or(f"{name}_noise", zeros)
            expected, count = arrays[f"{name}_idx_cluster"], case["cluster_num"]
            # With few clusters `dpc_knn` itself reduces the neighbours; otherwise their number is a setting.
            neighbours = case["k"] if count >= NO_TIES else 5
            actual = cluster_videos(
                jnp.asarray(features),
                jnp.asarray(far),
                jnp.asarray(noise, jnp.float32),
                clusters=count,
                neighbours=neighbours,
            )
            scarce = ((~far).sum(axis=1) < count).any()
            compared.same(np.asarray(actual)[~far], expected[~far])
            if not scarce:
                compared.same(actual, expected)
        if scarce and not tied:
            with group.case(f"{name}, masked frames", tied=True) as compared:
                compared.same(np.asarray(actual)[far], expected[far])


def first_stage(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the key frames of every mode, the dilation of masks, and the detection of queries about speech."""
    arrays, recorded = folder.arrays("05_keyframes_stage1"), folder.json("05_keyframes_stage1")
    plans = Group("05_keyframes_stage1/plans")
    yield plans

    def settings(case: dict[str, Any]) -> tuple[Any, ...]:
        # "event" is the original's other name of "none".
        shape = arrays[case["embeds"].split("[")[0]].shape
        return shape[1:], case["mode"].replace("event", "none"), case["num_clusters"], case["bias1"]

    for (shape, mode, count, dilation), group in itertools.groupby(sorted(recorded["cases"], key=settings), settings):
        cases, t = list(group), shape[0]
        rows = [(case, i) for case in cases for i in range(len(case["query"]))]
        plan: FramePlan | None = None
        error: Exception | None = None
        try:
            speech = [case["subtitle_durations"][i] for case, i in rows]
            plan = coarse(
                np.stack([arrays[case["embeds"].split("[")[0]][i].mean(1) for case, i in rows]),
                np.ones((len(rows), t), bool),
                mode=mode,
                clusters=count,
                dilation=dilation,
                is_speech_query=np.array(
                    [is_speech_query(case["query"][i], speech[r]) for r, (case, i) in enumerate(rows)]
                ),
                has_speech=np.stack(
                    [mark_speech_frames(speech[r], case["durations"][i], t) for r, (case, i) in enumerate(rows)]
                ),
                behaviour="reference",
            )
        except Exception as caught:
            error = caught
        rows_by_case = {id(case): [r for r, row in enumerate(rows) if row[0] is case] for case in cases}
        for case in cases:
            tied = not case.get(ROBUST, mode != "cluster" or count >= NO_TIES)
            with plans.case(f"case {case.get('id')}, {case['mode']}", tied=tied) as compared:
                _compare_plans(compared, plan, error, case, rows_by_case[id(case)])

    dilated = Group("05_keyframes_stage1/dilation")
    yield dilated
    for number, case in enumerate(recorded["two_side_bias_padding"]):
        with dilated.case(f"case {number}") as compared:
            # Some recorded masks have other values than 0 and 1; the original takes positive ones as True.
            compared.same(dilate(jnp.asarray(case["mask"]) > 0, case["bias"]), np.array(case["out"]) > 0)
    speech_queries = Group("05_keyframes_stage1/talk")
    yield speech_queries
    for case in recorded["is_talk_relative"]:
        with speech_queries.case(case["query"].strip()) as compared:
            compared.same(mentions_speech(case["query"], "reference"), case["talk"])


def second_stage(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the kept frames and key frames, with the recorded draws; both clusterings; and `compress`."""
    arrays, recorded = folder.arrays("06_keyframes_stage2"), folder.json("06_keyframes_stage2")
    plans, ids, thinned = (Group(f"06_keyframes_stage2/{what}") for what in ("plans", "clusters", "thinning"))
    yield from (plans, ids, thinned)
    max_windows = max((len(json.loads(w)) for c in recorded["cases"] for w in c["stage1_result"]), default=1)
    max_draws = max((len(d) // 2 for c in recorded["cases"] for d in c.get("draws") or []), default=0) + 1
    max_draws = max(max_draws, max((len(c["draws"]) // 2 for c in recorded["compress_mask"]), default=0) + 1)

    def settings(case: dict[str, Any]) -> tuple[Any, ...]:
        return case["feat"], case["num_clusters"], case["bias1"], case["bias2"]

    for (name, count, dilation, filter_dilation), group in itertools.groupby(
        sorted(recorded["cases"], key=settings), settings
    ):
        cases = list(group)
        rows = [(case, i) for case in cases for i in range(len(case["batch_sel"]))]
        plan, error = None, None
        try:
            unit = arrays[name] / np.linalg.norm(arrays[name], axis=-1, keepdims=True)
            features = np.stack([unit[case["batch_sel"][i]] for case, i in rows])
            t, speech = features.shape[1], [case["subtitle_durations"][i] for case, i in rows]
            features = features.reshape(len(rows), t, -1)
            windows = [json.loads(case["stage1_result"][i]) for case, i in rows]
            plan = fine(
                features,
                np.array([case["timestamps"][i] for case, i in rows], np.float32),
                np.ones((len(rows), t), bool),
                np.array([w + [[0, 0]] * (max_windows - len(w)) for w in windows], np.float32),
                np.array([[j < len(w) for j in range(max_windows)] for w in windows]),
                clusters=count,
                dilation=dilation,
                filter_dilation=filter_dilation,
                is_speech_query=np.array(
                    [is_speech_query(case["query"][i], speech[r]) for r, (case, i) in enumerate(rows)]
                ),
                has_speech=np.stack(
                    [mark_speech_frames(speech[r], case["duration"], t) for r, (case, i) in enumerate(rows)]
                ),
                behaviour="reference",
                draws=np.stack(
                    [uniform_draws(case["draws"][i] if "draws" in case else [], max_draws) for case, i in rows]
                ),
            )
        except Exception as caught:
            error = caught
        rows_by_case = {id(case): [r for r, row in enumerate(rows) if row[0] is case] for case in cases}
        for case in cases:
            case_rows, tied = rows_by_case[id(case)], not case.get(ROBUST, True)
            label = f"{name}, seed {case.get('torch_seed')}, windows {case['stage1_result']}"
            with plans.case(label, tied=tied or votes_tie(case)) as compared:
                _compare_plans(compared, plan, error, case, case_rows)
                if plan is not None and not case["error"]:
                    _compare_times(compared, plan, case, case_rows)
            if not case["error"]:
                # With fewer kept frames than clusters, frames that all score 0 become centres.
                kept = np.array(case["cluster_filter_results"]) != 0
                unsure = count < NO_TIES or bool((kept.sum(axis=1) < count).any())
                with ids.case(label, tied=tied or unsure) as compared:
                    if plan is None:
                        raise error or RuntimeError("no plan")
                    compared.same(np.asarray(plan.cluster)[case_rows], case["cluster"][0], "first")
                    second = cluster_videos(
                        features[case_rows], ~kept, np.zeros(kept.shape, np.float32), clusters=count, neighbours=5
                    )
                    compared.same(np.where(kept, second, -1), np.where(kept, case["cluster"][1], -1), "second")

    for number, case in enumerate(recorded["compress_mask"]):
        with thinned.case(f"case {number}") as compared:
            frames = len(case["key"])
            max_frames = max([frames, *(len(c["key"]) for c in recorded["compress_mask"])])
            keyframe_mask, other_mask = (
                np.pad(np.array(case[n], bool), (0, max_frames - frames)) for n in ("key", "non_key")
            )
            actual = compress_plan(
                keyframe_mask, other_mask, jnp.int32(case["target_count"]), uniform_draws(case["draws"], max_draws)
            )
            for mask, field in zip(actual, ("key_out", "non_key_out"), strict=True):
                compared.same(np.asarray(mask)[:frames].astype(int), case[field], field)


def votes_tie(case: Mapping[str, Any]) -> bool:
    """Return whether ties decide which clusters are elected by their frames in the windows, in any video of a case.

    The original sorts the clusters by votes with an unstable sort and takes the first `MAX_ELECTED_CLUSTERS`. If the
    last of them has as many votes as the next, which of the two stays depends on its library.
    """
    if case["error"] or "cluster" not in case:
        return False
    for cluster, times, text in zip(case["cluster"][0], case["timestamps"], case["stage1_result"], strict=True):
        seconds = np.round(np.array(times, np.float32))
        votes = np.zeros(case["num_clusters"], int)
        for start, end in json.loads(text):
            first, last = (seconds >= start).nonzero()[0], (seconds <= end).nonzero()[0]
            np.add.at(votes, np.array(cluster)[first[0] : last[-1]], 1)
        ranked = np.sort(votes)[::-1]
        if len(ranked) > MAX_ELECTED_CLUSTERS and ranked[MAX_ELECTED_CLUSTERS - 1] == ranked[MAX_ELECTED_CLUSTERS] > 0:
            return True
    return False


def selected_frames(plan: FramePlan, row: int) -> list[list[int]]:
    """Return [key frames, other kept frames] of a video, as frame indices."""
    index, kept, is_keyframe = (np.asarray(a)[row] for a in (plan.frame_index, plan.slot_mask, plan.is_keyframe))
    return [index[is_keyframe].tolist(), index[kept & ~is_keyframe].tolist()]


def is_speech_query(query: str, intervals: Sequence[Any]) -> bool:
    """Return whether a query is about speech and the video has speech."""
    return bool(intervals) and mentions_speech(query, "reference")


def uniform_draws(recorded: Sequence[Sequence[Any]], num_draws: int) -> np.ndarray:
    """Convert recorded draws to the draws of `compress`, uniform in [0, 1).

    Args:
      recorded: alternately an index drawn of n, and a uniform number.
      num_draws: E.

    Returns:
      float32 (E, 2); the rest is NaN, so that its use would show.
    """
    draws = np.full((num_draws, 2), np.nan, np.float32)
    for row, (pick, toss) in enumerate(zip(recorded[::2], recorded[1::2], strict=True)):
        draws[row] = (pick[2] + 0.5) / pick[1], toss[2]
    return draws


def _compare_plans(compared: Any, plan: FramePlan | None, error: Exception | None, case: dict, rows: list[int]) -> None:
    if plan is None:
        raise error or RuntimeError("no plan")
    # The original raises for the batch at the first such video.
    compared.same(any(bool(plan.reference_error[r]) for r in rows), bool(case["error"]), "raises")
    if not case["error"]:
        for i, r in enumerate(rows):
            compared.same(
                selected_frames(plan, r), [case["key_frame_idx"][i], case["non_key_frame_idx"][i]], f"video {i}"
            )


def _compare_times(compared: Any, plan: FramePlan, case: dict, rows: list[int]) -> None:
    for i, r in enumerate(rows):
        index = np.asarray(plan.frame_index)[r][np.asarray(plan.slot_mask)[r]]
        compared.same(np.array(case["timestamps"][i])[index], case["timestamps_filtered"][i], f"times of video {i}")
