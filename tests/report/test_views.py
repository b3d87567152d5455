"""Answers of the model as views of the report."""

import numpy as np
import pytest

from calce_jax.inference.answers import Answer
from calce_jax.input_pipeline.example import Example
from calce_jax.moments.scoring import BeamHypothesis, QueryMoments
from calce_jax.report.views import query_view
from calce_jax.text.text_row import RowFlag

BEAMS = [BeamHypothesis([], 0.6), BeamHypothesis([[2, 4]], 0.4)]


@pytest.mark.parametrize(
    ("moments", "saliency"),
    [
        (QueryMoments([], "[]", "empty", BEAMS, is_absent=True), []),
        (QueryMoments([[2.0, 4.0, 0.4]], "[[2, 4]]", "exact", BEAMS), [0.0, 0.4, 0.0, 0.0]),
    ],
)
def test_an_answer_that_nothing_happens_has_no_saliency_of_other_beams(moments, saliency):
    example = Example(
        qid=1,
        video="v",
        video_row=0,
        query="A red circle appears.",
        items=[],
        duration=8.0,
        windows=np.zeros((0, 2)),
        stage1_windows=None,
        kind="",
        keyframes=[],
        indices=np.zeros(0, np.int32),
        times=np.zeros(0, np.float32),
        total_frames=80,
        fps=10.0,
        captions=[],
    )
    answer = Answer(0, moments, [], {}, [], RowFlag(0))
    (stage,) = query_view(example, {"stage 2": answer}, []).stages.values()
    assert stage.is_absent == moments.is_absent
    np.testing.assert_allclose(stage.saliency, saliency, atol=0.2)
    assert len(stage.saliency) == len(saliency)
