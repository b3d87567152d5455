"""Batches grouped by prompt length: every query once per epoch, with the same results as without grouping."""

import json
from dataclasses import replace
from functools import cache

import grain
import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks.aot.flops import count_flops
from calce_jax.distributed.sharding import build_mesh
from calce_jax.inference.length_grouping import LengthGrouper, make_batch_predictor
from calce_jax.inference.predict_step import compile_predict, make_predict
from calce_jax.training.feed import LengthGroupedIterator
from tests.helpers.tiny_model import IMAGE_SIZE, SIZES, STEPS, abstract_model, make_batch, make_model

pytestmark = pytest.mark.slow

ROWS, B, EPOCH, WINDOW = 20, 4, 5, 3
WHOLE = make_batch([3 + row * 7 % 6 for row in range(ROWS)])
# Crops: the left half of each video.
HALF = IMAGE_SIZE // 2
TABLE = replace(WHOLE, crop=np.tile(np.array([0, 0, IMAGE_SIZE, HALF], np.int32), (ROWS, 1)))
GRAPH = abstract_model(SIZES)[0]
MESH = build_mesh((2, 2, 1), jax.devices())


@cache
def weights():
    """Return trainables and frozen weights."""
    return make_model()[1:]


def in_order(epochs=None, table=TABLE):
    def batch_of(number):
        rows = slice(number * B, (number + 1) * B)
        return jax.tree.map(lambda leaf: leaf[rows], table)

    return iter(grain.MapDataset.range(EPOCH).map(batch_of).repeat(epochs).to_iter_dataset())


@pytest.fixture(scope="module")
def grouper():
    return LengthGrouper(GRAPH, STEPS[1], MESH)


def grouped(grouper, state=None, table=TABLE, **changes):
    batches = LengthGroupedIterator(
        in_order(table=table),
        grouper,
        weights()[1],
        **{"batches_per_window": WINDOW, "batches_per_epoch": EPOCH, "seed": 0, **changes},
    )
    batches.trainable = weights()[0]
    if state is not None:
        batches.set_state(json.loads(json.dumps(state)))
    return batches


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_holds_every_query_once_and_a_window_is_sorted(grouper):
    batches = grouped(grouper)
    for epoch in range(2):
        infos = [next(batches)[0] for _ in range(EPOCH)]
        assert sorted(np.concatenate([row_info.example_index for row_info in infos]).tolist()) == list(range(ROWS)), (
            epoch
        )
        for window, rows in ((infos[:WINDOW], range(WINDOW * B)), (infos[WINDOW:], range(WINDOW * B, ROWS))):
            assert set(np.concatenate([row_info.example_index for row_info in window]).tolist()) == set(rows)
            lengths = np.concatenate(
                sorted((np.sort(row_info.prompt_length) for row_info in window), key=lambda n: n.tolist())
            )
            assert (np.diff(lengths) >= 0).all()


def test_the_batch_has_the_rows_of_its_row_info(grouper):
    row_info, batch = next(grouped(grouper))
    np.testing.assert_array_equal(batch.example_index, row_info.example_index)
    np.testing.assert_array_equal(batch.frame_mask.sum(axis=1), row_info.num_frames)
    np.testing.assert_array_equal(batch.tokens, TABLE.tokens[row_info.example_index])
    assert batch.frames.size == 0
    hosts = [next(grouped(grouper, process_index=host, process_count=2))[0].example_index for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts), row_info.example_index)


def test_resumes_in_the_middle_of_a_window(grouper):
    whole, states, taken = grouped(grouper), [], []
    for _ in range(EPOCH + WINDOW):
        states.append(whole.get_state())
        taken.append(next(whole))
    for at in (0, 1, WINDOW, EPOCH - 1, EPOCH):
        again = grouped(grouper, states[at])
        assert again.get_state() == states[at]
        for expected in taken[at : at + 2]:
            assert_same(next(again), expected)


def test_features_are_of_cropped_frames(grouper):
    frames = TABLE.frames.copy()
    frames[:, :, :, HALF:] = 0
    batch, same = (next(grouped(grouper, table=table))[1] for table in (TABLE, replace(TABLE, frames=frames)))
    assert batch.crop is None
    assert_same(batch, same)


def test_no_step_computes_again_how_alike_captions_are(grouper):
    model, (_, batch) = nnx.merge(GRAPH, *weights()), next(grouped(grouper))
    computed = replace(batch, caption_similarity=None)
    assert np.abs(batch.caption_similarity).max() > 0.01
    np.testing.assert_allclose(
        batch.caption_similarity, model.caption_similarity(computed, STEPS[1].selection), rtol=0, atol=2e-6
    )
    given, anew = (
        jax.make_jaxpr(lambda rows: model.select_captions(rows, STEPS[1].selection))(rows) for rows in (batch, computed)
    )
    assert count_flops(given) == 0
    assert count_flops(anew) > 0


def test_the_original_compares_captions_in_every_step_with_dropout():
    steps = replace(STEPS[1], selection=replace(STEPS[1].selection, behaviour="reference"))
    encode = LengthGrouper(GRAPH, steps, MESH).encode_batch
    rows = jax.tree.map(lambda leaf: leaf[:B], TABLE)
    batch, _ = jax.eval_shape(encode, *weights(), rows)
    assert batch.caption_similarity is None


def test_the_order_of_batches_depends_on_the_seed(grouper):
    def rows(seed):
        batches = grouped(grouper, seed=seed)
        return [next(batches)[0].example_index.tolist() for _ in range(EPOCH)]

    assert rows(0) == rows(0)
    assert len({str(rows(seed)) for seed in range(4)}) > 1


def test_the_data_may_end(grouper):
    batches = LengthGroupedIterator(
        in_order(1), grouper, weights()[1], batches_per_window=WINDOW, batches_per_epoch=EPOCH, seed=0
    )
    batches.trainable = weights()[0]
    assert len(list(batches)) == EPOCH


def test_predictions_come_in_the_order_of_the_data(grouper):
    """Rows are independent; only the order of sums in the matrix products of another batch differs."""
    predict = compile_predict(make_predict(GRAPH, replace(STEPS[1], buckets=(96,))), MESH)
    found, plain = (
        list(make_batch_predictor(predict, MESH, grouper, window)(*weights(), in_order(1))) for window in (WINDOW, 1)
    )
    assert len(found) == EPOCH
    for prediction, alone in zip(found, plain, strict=True):
        np.testing.assert_array_equal(prediction.batch.example_index, alone.batch.example_index)
        np.testing.assert_array_equal(prediction.prompt_selection.prompt_lengths, alone.prompt_selection.prompt_lengths)
        np.testing.assert_array_equal(prediction.answers.tokens, alone.answers.tokens)
        np.testing.assert_allclose(prediction.answers.log_probability, alone.answers.log_probability, atol=2e-6)
