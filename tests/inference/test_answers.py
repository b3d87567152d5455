"""What the device selected, in terms of the video's captions."""

from dataclasses import replace

import numpy as np
import pytest

from calce_jax.batch import Batch
from calce_jax.config import packaged_path
from calce_jax.inference.answers import decode_answers
from calce_jax.inference.prediction import BatchPrediction
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.selection import CaptionSelection, PromptSelection
from calce_jax.text.text_row import RowFlag
from calce_jax.text.tokenizers import load_t5


def make_prediction(tokens, duration=8.0):
    """Three of a video's captions are in the row: its 1st, 8th and 10th."""
    batch = Batch.zeros(1, frames=2, image_size=0, captions=4, bert_tokens=3, text_tokens=9, windows=1, answer_tokens=4)
    batch = replace(
        batch,
        frame_mask=np.ones((1, 2), bool),
        duration=np.array([duration], np.float32),
        caption_positions=np.array([[0, 7, 9, -1]], np.int32),
        row_mask=np.array([True]),
        row_flags=np.array([RowFlag.CAPTIONS_DROPPED], np.int32),
    )
    plan = FramePlan(
        np.array([[0, 1]]), np.ones((1, 2), bool), np.ones((1, 2), bool), np.zeros((1, 2), int), np.array([False])
    )
    captions = CaptionSelection(
        np.array([[2, 1]]), np.array([[True, False]]), np.array([[0.25, 0.5, 0.95, 0.0]], np.float32)
    )
    answers = BeamSearchOutput(tokens, np.zeros((1, 1)), np.zeros((1, 1)), np.ones((1, 1), bool), np.array(1))
    return BatchPrediction(answers, PromptSelection(plan, captions, np.array([9])), batch)


@pytest.fixture
def t5():
    return load_t5(packaged_path("calce_jax/assets/tiny/t5"))


def test_captions_are_named_by_their_positions_in_the_video(t5):
    (answer,) = decode_answers(make_prediction(np.zeros((1, 1, 4), int)), t5, [8.0], window_order="given")
    assert answer.caption_similarity == pytest.approx({0: 0.25, 7: 0.5, 9: 0.95})
    assert answer.used_captions == [9]
    assert answer.row_flags == RowFlag.CAPTIONS_DROPPED


def test_a_window_ends_with_the_video_as_it_is_annotated(t5):
    """Not with the nearest float32, which may be after it."""
    tokens = np.array([[t5.encode("[[20, 40]]")]])
    for duration in (32.3, 301 / 9):
        assert float(np.float32(duration)) != duration
        (answer,) = decode_answers(make_prediction(tokens, duration), t5, [duration], window_order="given")
        assert [window[:2] for window in answer.moments.windows] == [[20, duration]]
