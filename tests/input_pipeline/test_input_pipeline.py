"""From examples to batches: frames, crops, order, hosts, workers, resuming, and row flags."""

import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from calce_jax.config import packaged_path
from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.input_pipeline.augment import Crop, sample_crop
from calce_jax.input_pipeline.batches import InputError, make_iterator
from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.input_config import InputConfig, abstract_batch, batches_per_epoch
from calce_jax.input_pipeline.row_flags import RowFlagCounter
from calce_jax.moments.annotations import Annotation
from calce_jax.text.prompt import decode_answer
from calce_jax.text.text_row import RowFlag
from calce_jax.text.tokenizers import load_bert, load_t5
from calce_jax.video.decode import encode_jpeg
from tests.helpers.recordings_io import load_recording

TOKENIZERS = load_t5(packaged_path("calce_jax/assets/tiny/t5")), load_bert(packaged_path("calce_jax/assets/tiny/bert"))
SIZE, TOTAL, STORED = 32, 64, 8
CONFIG = InputConfig(
    folder="prepared",
    split="train",
    stage=1,
    frames=4,
    image_size=SIZE,
    batch_size=4,
    max_captions=3,
    bert_tokens=16,
    text_tokens=200,
    max_windows=2,
    answer_tokens=24,
    max_text_tokens=64,
)
TRAINING = replace(CONFIG, augment=True, shuffle=True, remainder="drop", num_epochs=None, seed=7)


def example(number, **changes):
    """Return an example whose frame i is uniformly grey, 8 i brighter than its first frame."""
    shades = np.full((STORED, SIZE, SIZE, 3), 8 * number, np.uint8)
    shades += np.arange(0, 8 * STORED, 8, dtype=np.uint8)[:, None, None, None]
    base = Example(
        qid=f"q{number}",
        video=f"v{number}",
        video_row=number,
        query=f"a red circle moves to the left {number}",
        items=["red circle"],
        duration=8.0,
        windows=np.array([[1.0, 4.0]]),
        stage1_windows=None,
        kind=None,
        keyframes=encode_jpeg(shades),
        indices=np.arange(0, TOTAL, TOTAL // STORED, dtype=np.int32),
        times=np.arange(STORED, dtype=np.float32),
        total_frames=TOTAL,
        fps=8.0,
        captions=[(1.0, 2.0, "we found the lighthouse")],
    )
    return replace(base, **changes)


EXAMPLES = [example(number) for number in range(10)]


def iterate(config=CONFIG, examples=EXAMPLES, **host):
    return make_iterator(config, *TOKENIZERS, examples=examples, **host)


def one(config=CONFIG, **changes):
    """Return the fields of the row of a batch of one."""
    batch = next(iterate(replace(config, batch_size=1), [example(3, **changes)]))
    return jax.tree.map(lambda a: a[0], vars(batch))


def test_speech_that_is_not_english_is_speech_without_a_caption():
    row = one(captions=[(1.0, 5.0, "où est la gare")])
    assert row["has_speech"].any()
    assert not row["caption_bert_tokens"].any()
    assert one(captions=[(1.0, 5.0, "we found the lighthouse")])["caption_bert_tokens"].any()


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, vars(a), vars(b))


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, augment=True)], ids=["whole", "cropped"])
def test_batches_have_the_shapes_of_abstract_batch(config):
    abstract = abstract_batch(config)
    assert (abstract.crop is not None) == config.augment
    for batch in iterate(config):
        for (path, array), promised in zip(jax.tree.leaves_with_path(batch), jax.tree.leaves(abstract), strict=True):
            assert (array.shape, array.dtype) == (promised.shape, promised.dtype), path


def test_an_evaluation_sees_every_query_once_in_order():
    batches = list(iterate())
    assert batches_per_epoch(len(EXAMPLES), CONFIG) == len(batches) == 3
    rows = np.concatenate([batch.example_index for batch in batches])
    valid = np.concatenate([batch.row_mask for batch in batches])
    assert rows.tolist() == [*range(10), -1, -1]
    assert valid.tolist() == [True] * 10 + [False] * 2
    assert not batches[-1].frames[2:].any()


def test_wanted_frames_are_chosen_from_the_stored():
    row = one()
    assert row["times"].tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(row["frames"][:, 0, 0, 0], [24, 40, 56, 72], atol=1)
    assert row["frame_mask"].all()


def test_a_short_video_leaves_frames_empty():
    row = one(total_frames=2, indices=np.arange(2), times=np.array([0.0, 1.0]), keyframes=EXAMPLES[0].keyframes[:2])
    assert row["frame_mask"].tolist() == [True, True, False, False]
    assert not row["frames"][2:].any()
    assert row["spans"][:4, 1].astype(bool).tolist() == [True, True, False, False]


def test_captions_reach_the_row_and_can_be_withheld():
    row = one(query="They talk about a lighthouse.")
    assert row["is_speech_query"]
    # From second 1 to 2 of 8, in four equal parts.
    assert row["has_speech"].tolist() == [True, True, False, False]
    start, size = row["spans"][CONFIG.frames + 1]
    assert decode_answer(TOKENIZERS[0], row["tokens"][start : start + size]) == "[1 we found lighthouse2]"
    assert row["caption_bert_tokens"][0].any()
    silent = one(replace(CONFIG, use_captions=False), query="They talk about a lighthouse.")
    assert not silent["is_speech_query"]
    assert not silent["has_speech"].any()
    assert not silent["caption_bert_tokens"].any()
    assert silent["spans"][CONFIG.frames + 1].tolist() == [0, 0]
    assert not one(query="A red circle.")["is_speech_query"]


def test_stage_2_reads_the_stage_1_windows():
    config = replace(CONFIG, stage=2)
    row = one(config, stage1_windows=np.array([[1.0, 2.5]]))
    assert row["stage1_windows"].tolist() == [[1.0, 2.5], [0.0, 0.0]]
    assert row["window_mask"].tolist() == [True, False]
    assert row["row_flags"] == 0
    row = one(config)
    assert row["stage1_windows"][0].tolist() == [0.0, 8.0]
    assert row["row_flags"] == RowFlag.NO_STAGE1_WINDOWS
    row = one(config, stage1_windows=np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    assert row["window_mask"].all()
    assert row["row_flags"] == RowFlag.STAGE1_WINDOWS_DROPPED


def test_the_original_rounds_times_of_stage_2():
    times = np.arange(STORED) + 0.125 + 1e-4
    windows = np.array([[1.0, 2.0]])
    row = one(replace(CONFIG, stage=2, behaviour="reference"), times=times, stage1_windows=windows)
    np.testing.assert_array_equal(row["times"], np.array([0.13, 2.13, 4.13, 6.13], np.float32))
    row = one(replace(CONFIG, stage=2), times=times, stage1_windows=windows)
    np.testing.assert_array_equal(row["times"], times[::2].astype(np.float32))


def test_row_flags_are_counted_by_query():
    long = [example(n, query="red " * 90) if n % 2 else example(n) for n in range(10)]
    long[4] = example(4, captions=[(float(s), s + 0.5, "let me tell you") for s in range(6)])
    counter = RowFlagCounter()
    for batch in iterate(replace(CONFIG, num_epochs=2), long):
        counter.add(batch.example_index, batch.row_flags)
    lines = counter.summary_lines(lambda rows: [f"q{row}" for row in rows])
    assert lines == ["query truncated: 5 queries (q1, q3, q5, q7, q9)", "captions dropped: 1 query (q4)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"windows": np.array([[9.0, 12.0]])}, r"query q3 of video v3: window \[9, 12\]: lies outside the video"),
        ({"indices": np.arange(STORED)}, r"3 of its 4 frames are not among the 8 stored; prepare .*--frames=4"),
        ({"keyframes": [b"nothing"] * STORED}, r"frame 0 is not a JPEG .*prepare the video again"),
        (
            {"keyframes": encode_jpeg(np.zeros((STORED, 16, 24, 3), np.uint8))},
            r"stored with 24 x 16 pixels, and the model reads 32 x 32",
        ),
        ({"total_frames": 0, "indices": np.arange(0)}, r"it has no frames"),
    ],
)
def test_bad_examples_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        one(**changes)


def test_stage_2_of_the_original_needs_stage_1_windows():
    with pytest.raises(InputError, match=r"q3 .*no stage-1 windows.*merge"):
        one(replace(CONFIG, stage=2, behaviour="reference"))


def test_impossible_batches_are_refused():
    with pytest.raises(InputError, match=r"batch_size: must be a multiple of the 3 hosts, got 4"):
        iterate(process_count=3)
    with pytest.raises(InputError, match=r"has 3 queries, too few for a batch of 4"):
        iterate(TRAINING, EXAMPLES[:3])


def test_every_epoch_has_its_own_order_and_crops():
    iterator = iterate(TRAINING)
    first, second = ([next(iterator) for _ in range(2)] for _ in range(2))
    rows = [np.concatenate([batch.example_index for batch in epoch]) for epoch in (first, second)]
    assert not np.array_equal(*rows)
    for epoch_rows in rows:
        assert len(set(epoch_rows)) == 8, "the remainder is dropped"
    again = iterate(TRAINING)
    for batch in [*first, *second]:
        assert_same(batch, next(again))
    assert not np.array_equal(next(iterate(replace(TRAINING, seed=8))).example_index, first[0].example_index)


def test_crops_depend_on_seed_epoch_and_example_alone():
    def crops(epochs, **changes):
        iterator = iterate(replace(TRAINING, **changes), EXAMPLES[:4])
        batches = [next(iterator) for _ in range(epochs)]
        return [dict(zip(batch.example_index.tolist(), batch.crop.tolist(), strict=True)) for batch in batches]

    for epoch, drawn in enumerate(crops(2)):
        seeds = {number: (TRAINING.seed, epoch, number) for number in range(4)}
        assert drawn == {n: list(sample_crop(np.random.default_rng(seed), SIZE, SIZE)) for n, seed in seeds.items()}
        assert len(set(map(str, drawn.values()))) == 4
    assert crops(1, shuffle=False) == crops(1)


def test_a_draw_with_a_seed_is_that_of_earlier_versions():
    assert sample_crop(np.random.default_rng((7, 0, 3)), 224, 224) == Crop(44, 37, 170, 180)
    assert sample_crop(np.random.default_rng((42, 5, 1234)), 224, 224) == Crop(49, 38, 167, 151)


def test_frames_of_a_cropped_batch_are_whole():
    cropped, whole = (next(iterate(replace(TRAINING, augment=augment))) for augment in (True, False))
    assert whole.crop is None
    np.testing.assert_array_equal(cropped.frames, whole.frames)


def test_hosts_share_each_batch():
    whole = iterate(TRAINING)
    parts = [iterate(TRAINING, process_index=i, process_count=2) for i in range(2)]
    for _ in range(5):
        batch, halves = next(whole), [next(part) for part in parts]
        assert_same(batch, jax.tree.map(lambda *parts: np.concatenate(parts), *halves))


def test_a_host_may_have_padding_rows_alone():
    last = [list(iterate(process_index=i, process_count=2))[-1] for i in range(2)]
    assert last[0].row_mask.tolist() == [True, True]
    assert last[1].row_mask.tolist() == [False, False]
    assert last[1].frames.shape == last[0].frames.shape


def test_an_iterator_resumes_in_the_middle_of_an_epoch():
    iterator = iterate(TRAINING)
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    expected = [next(iterator) for _ in range(4)]
    # The second state is what earlier versions saved with two worker processes.
    by_worker = {"next_index_in_cycle": 1, "iterators_in_use_states": [{"next_index": 2}, {"next_index": 1}]}
    for saved in (state, by_worker):
        resumed = iterate(TRAINING)
        next(resumed)
        resumed.set_state(saved)
        for batch in expected:
            assert_same(batch, next(resumed))


@pytest.mark.release
@pytest.mark.slow
def test_worker_processes_change_nothing():
    config = replace(TRAINING, num_workers=2)
    alone, workers = iterate(TRAINING), iterate(config)
    for _ in range(3):
        assert_same(next(alone), next(workers))
    assert workers.get_state() == alone.get_state() == {"next_index": 3}
    expected = [next(workers) for _ in range(2)]
    # With any number of workers; and from the state that earlier versions saved with two.
    by_worker = {"next_index_in_cycle": 1, "iterators_in_use_states": [{"next_index": 2}, {"next_index": 1}]}
    for num_workers, state in ((2, {"next_index": 3}), (0, {"next_index": 3}), (0, by_worker)):
        resumed = iterate(replace(config, num_workers=num_workers))
        next(resumed)
        resumed.set_state(state)
        for batch in expected:
            assert_same(batch, next(resumed))
        resumed.close()
    for batch in expected:
        assert_same(batch, next(alone))
    with pytest.raises(Exception, match=r"query q1 of video v1: it has no frames"):
        next(
            iterate(
                replace(config, shuffle=False), [example(n, total_frames=0) if n == 1 else example(n) for n in range(4)]
            )
        )


def test_reading_does_not_import_tensorflow():
    code = "import sys, calce_jax.input_pipeline; print([m for m in sys.modules if m.split('.')[0] == 'tensorflow'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_crops_are_distributed_as_the_originals(shared):
    """2000 draws each: means within four standard errors."""
    theirs = load_recording(shared, "11_frames")["rrc_samples_224"].astype(np.float64)
    rng = np.random.default_rng(0)
    ours = np.array([sample_crop(rng, 224, 224) for _ in range(2000)], np.float64)

    def measures(crops):
        top, left, height, width = crops.T
        area, ratio = height * width / 224**2, np.log(width / height)
        return np.stack([top, left, height, width, area, ratio, area**2, ratio**2, top * left], axis=1)

    a, b = measures(ours), measures(theirs)
    error = np.sqrt(a.var(axis=0) / len(a) + b.var(axis=0) / len(b))
    assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error).all()
    assert (ours[:, 0] + ours[:, 2]).max() <= 224
    assert (ours[:, 1] + ours[:, 3]).max() <= 224


def test_an_image_that_no_draw_fits_gets_the_central_crop():
    assert sample_crop(np.random.default_rng(0), 10, 1000) == Crop(0, 493, 10, 13)
    assert sample_crop(np.random.default_rng(0), 1000, 10) == Crop(493, 0, 13, 10)


@pytest.mark.slow
def test_tables_become_batches(tmp_path):
    """Written by the builder of a dataset, read in this process and in a worker process."""
    query = Annotation("q0", "v0", "a red circle", ["red circle"], 8.0, [[1.5, 4.0]])
    first = EXAMPLES[0]
    video = VideoRecord("v0", TOTAL, 8.0, 8.0, first.indices, first.times, first.keyframes, first.captions)
    build_tables(tmp_path, "shapes", {"train": [query, replace(query, qid="q1")]}, lambda _: video)
    config = replace(CONFIG, folder=str(tmp_path), batch_size=2)
    batch = next(make_iterator(config, *TOKENIZERS))
    assert batch.example_index.tolist() == [0, 1]
    assert decode_answer(TOKENIZERS[0], batch.labels[0]) == "[[2, 4]]"
    np.testing.assert_array_equal(batch.frames[0], batch.frames[1])
    assert_same(batch, next(make_iterator(replace(config, num_workers=1), *TOKENIZERS)))
