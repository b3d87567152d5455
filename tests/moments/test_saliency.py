"""The saliency of clips: by the probability of the windows that have them, then by the place in a window."""

import json

import numpy as np
import pytest

from calce_jax.moments.annotations import read_annotations
from calce_jax.moments.json_rows import normalise_qid
from calce_jax.moments.metrics.highlights import HighlightCase, highlight_scores, rate_clips
from calce_jax.moments.saliency import POSITION_WEIGHT, clip_saliency
from calce_jax.moments.scoring import BeamHypothesis
from calce_jax.search.saliency import segment_saliency
from calce_jax.search.segments import Segment


def test_a_clip_is_worth_the_probability_that_it_is_in_a_window():
    beams = [BeamHypothesis([[4, 10]], 0.7), BeamHypothesis([[7, 12], [16, 18]], 0.3)]
    expected = [0, 0, 0.7, 0.7 + 0.3 / 2, 1.0, 0.3, 0, 0, 0.3, 0]
    np.testing.assert_allclose(clip_saliency(beams, 20), expected, atol=2 * POSITION_WEIGHT)


def test_a_clip_has_two_seconds_and_the_rest_of_the_video_none():
    assert len(clip_saliency([BeamHypothesis([[0, 1]], 1.0)], 149.9)) == 74
    assert clip_saliency([BeamHypothesis([[0, 1]], 1.0)], 1.5) == []


def test_within_a_window_the_clips_before_the_middle_come_first_and_outside_the_nearest():
    (ranked,) = [np.argsort(clip_saliency([BeamHypothesis([[10, 30]], 1.0)], 60))[::-1].tolist()]
    inside, outside = ranked[:10], ranked[10:]
    assert set(inside) == set(range(5, 15))
    # 40 % of the window is at 18 s: the clips from 16 and from 18 s.
    assert set(inside[:2]) == {8, 9}
    assert inside[-1] == 14
    distances = [min(abs(2 * clip + 1 - 10), abs(2 * clip + 1 - 30)) for clip in outside]
    assert distances == sorted(distances)


def test_no_window_in_any_beam_ranks_nothing():
    assert clip_saliency([BeamHypothesis([], 1.0)], 10) == [0.0] * 5


def test_a_window_of_no_length_is_no_division_by_zero():
    assert all(np.isfinite(clip_saliency([BeamHypothesis([[3, 3]], 1.0)], 10)))


def test_segments_are_averaged_where_they_overlap():
    segments = [Segment(0.0, 20.0), Segment(10.0, 30.0)]
    beams = [[BeamHypothesis([[12, 16]], 1.0)], [BeamHypothesis([[2, 6], [14, 20]], 0.5), BeamHypothesis([], 0.5)]]
    found = segment_saliency(segments, beams, 30.0)
    # From 12 to 16 s both segments see it, the second at 0.5; from 24 to 30 s the second alone.
    expected = [0, 0, 0, 0, 0, 0, 0.75, 0.75, 0, 0, 0, 0, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(found, expected, atol=2 * POSITION_WEIGHT)


def test_what_is_after_the_last_segment_that_was_asked_about_has_no_saliency():
    found = segment_saliency([Segment(0.0, 20.0)], [[BeamHypothesis([[10, 20]], 1.0)]], 60.0)
    np.testing.assert_allclose(found, [0] * 5 + [1] * 5 + [0] * 20, atol=2 * POSITION_WEIGHT)


@pytest.mark.release
def test_the_published_answers_of_the_original_as_highlights(shared):
    answers = json.loads((shared / "annotations/calce/qvh/val_stage2.json").read_text())
    windows = {normalise_qid(row["qid"]): [w[:2] for w in row["stage1_result"] if w[0] >= 0] for row in answers}
    cases = []
    for row in read_annotations(shared / "annotations/qvhighlights/highlight_val_release.jsonl"):
        saliency = clip_saliency([BeamHypothesis(windows[normalise_qid(row.qid)], 1.0)], row.duration)
        cases.append(HighlightCase(row.qid, np.array(saliency), rate_clips(row.duration, row.clip_ratings)))
    scores = highlight_scores(cases)
    # docs/ranking.md; without the place in the window they are 30.57 and 51.74.
    assert scores["VeryGood"] == {"mAP": pytest.approx(41.4, abs=0.1), "Hit1": pytest.approx(67.0, abs=0.1)}
