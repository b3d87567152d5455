"""Predictions of two looks: a small model on tables with twice the frames that it reads."""

import functools
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.errors import UserError
from calce_jax.inference import look_again as look_again_module
from calce_jax.inference import predict_split as predict_split_module
from calce_jax.inference.extract_features import VideoDataset, extract_features
from calce_jax.inference.look_again import predict_split_twice
from calce_jax.inference.partial_predictions import PartialPredictions
from calce_jax.inference.predict_split import (
    open_split,
    predict_examples,
    predict_queries,
    predict_split,
    profiled_predictor,
)
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.dataset import open_dataset
from calce_jax.input_pipeline.feature_store import FeaturesError
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.input_pipeline.neighbourhood import NeighbourhoodDataset, find_neighbourhood
from calce_jax.input_pipeline.rows import InputError
from calce_jax.moments.annotations import Annotation
from calce_jax.moments.minimum_bayes_risk import least_risk
from calce_jax.moments.predictions import PredictionError, read_predictions
from calce_jax.video.decode import encode_jpeg
from tests.helpers.search_stages import make_stages

pytestmark = pytest.mark.slow

FRAMES, SECONDS = 5, 20.0


def make_video(video, frames=range(2 * FRAMES), start=0, seconds=SECONDS):
    """A video of a frame every two seconds; or a part of it, from the second `start` on."""
    noise = np.random.default_rng(ord(video[0])).integers(0, 256, (2 * FRAMES, 28, 28, 3), np.uint8)
    times = 2.0 * np.array(frames, np.float32) - start
    captions = [(max(2.0 - start, 0), 6.0 - start, "a dog"), (max(11.0 - start, 0), min(14.0 - start, seconds), "rain")]
    captions = [caption for caption in captions if caption[0] < seconds and caption[1] > 0]
    indices = np.arange(len(frames), dtype=np.int32)
    return VideoRecord(
        video, len(frames), len(frames) / seconds, seconds, indices, times, encode_jpeg(noise[list(frames)]), captions
    )


QUERIES = [Annotation(n, "ab"[n % 2], f"a circle {n}", [], None, [[0, 1]]) for n in range(5)]


def build(folder, queries=QUERIES, make=make_video):
    build_tables(folder, "shapes", {"val": queries}, make)
    return str(folder)


@pytest.fixture(scope="module")
def stage():
    """A model with random weights, whose answers the grammar makes windows of the video."""
    stage = make_stages()[0]
    config = stage.config
    generation = replace(config.generation, beams=3, constrain=True)
    return replace(stage, config=replace(config, generation=generation, data=replace(config.data, eval_batch=2)))


@pytest.fixture(scope="module", autouse=True)
def one_program(stage):
    """Compile the prediction once: all models here differ in what they read alone."""
    with pytest.MonkeyPatch.context() as patch:
        compile_predictor = functools.cache(stage.compile_predictor)
        patch.setattr(TrainedModel, "compile_predictor", lambda _, max_duration: compile_predictor(max_duration))
        yield


def on(stage, folder):
    return replace(stage, config=replace(stage.config, data=replace(stage.config.data, directory=folder)))


@pytest.fixture
def model(stage, tmp_path):
    return on(stage, build(tmp_path / "prepared"))


def with_decision(model, decision):
    generation = replace(model.config.generation, decision=decision)
    return replace(model, config=replace(model.config, generation=generation))


def batches_of(model, examples):
    inputs = input_config(model.config, "val", model.model_config, training=False)
    return list(make_iterator(inputs, model.tokenizers.t5, model.tokenizers.bert, examples=examples))


def test_both_looks_are_those_of_videos_that_are_prepared_so(model, tmp_path):
    """The second is that of a table that holds each neighbourhood as a video, and the beams of both are pooled."""
    first = predict_examples(model, "val", range(len(QUERIES)))
    seen_twice = [replace(row, windows=None) for row in QUERIES]
    parts = {}
    dataset = open_split(model.config, "val", model.tokenizers, model.model_config).dataset
    for row, answer in enumerate(first):
        if windows := answer.moments.windows:
            parts[row] = find_neighbourhood(dataset[row], windows[0][:2], FRAMES, 1)
    assert 2 <= len(parts) < len(QUERIES)  # others are answered []
    alone = [replace(seen_twice[row], video=f"{seen_twice[row].video}{row}") for row in parts]

    def make_part(video):
        part = parts[int(video[1:])]
        return make_video(video, part.positions, part.start, part.duration)

    cropped = on(model, build(tmp_path / "cropped", alone, make_part))
    second = predict_examples(cropped, "val", range(len(parts)))

    # Both are read alike: the same frames, times, captions and text.
    of_parts, of_videos = (
        batches_of(cropped, examples)
        for examples in (NeighbourhoodDataset(dataset, parts), open_dataset(cropped.config.data.directory, "val"))
    )
    for part, video in zip(of_parts, of_videos, strict=True):
        assert part.frames.any()
        for array, expected in zip(jax.tree.leaves(part), jax.tree.leaves(video), strict=True):
            np.testing.assert_array_equal(array, expected)

    predictions = predict_split_twice(model, "val", tmp_path / "val.jsonl")
    assert read_predictions(tmp_path / "val.jsonl") == predictions
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cropped", "prepared", "val.jsonl"]
    once = predict_split(model, "val", tmp_path / "once.jsonl")
    changed = 0
    for row, prediction in enumerate(predictions):
        if row not in parts:
            assert prediction == once[row]
            continue
        start = parts[row].start
        beams = [(beam.windows, beam.probability / 2) for beam in first[row].moments.hypotheses]
        again = second[list(parts).index(row)].moments.hypotheses
        beams += [([[a + start, b + start] for a, b in beam.windows], beam.probability / 2) for beam in again]
        beams.sort(key=lambda beam: -beam[1])
        best, _ = beams[least_risk(*zip(*beams, strict=True))]
        given = prediction.windows[: prediction.answer_windows]
        assert sorted(window[:2] for window in given) == sorted(best)
        assert prediction.text == json.dumps(best)
        assert (prediction.qid, prediction.duration, prediction.beams) == (row, SECONDS, None)
        changed += prediction.windows != once[row].windows
    assert changed


@pytest.fixture
def asked(monkeypatch):
    """The queries that are asked, in order; after `asked.stop_after` ones the job is stopped."""

    class Asked(list):
        stop_after = -1

    asked, write = Asked(), predict_split_module.write_line

    def write_or_stop(file, line):
        if len(asked) == asked.stop_after:
            raise KeyboardInterrupt
        asked.append(json.loads(line)["qid"])
        write(file, line)

    monkeypatch.setattr(predict_split_module, "write_line", write_or_stop)
    return asked


ALL, AGAIN = [0, 1, 2, 3, 4], [1, 3]


def run(asked, model, out, stop_after=-1):
    """Return the queries that are asked by a call, which is stopped after some."""
    asked.clear()
    asked.stop_after = stop_after
    if stop_after < 0:
        predict_split_twice(model, "val", out)
    else:
        with pytest.raises(KeyboardInterrupt):
            predict_split_twice(model, "val", out)
    return list(asked)


def test_a_stopped_job_repeats_no_finished_look(model, tmp_path, asked):
    out = tmp_path / "val.jsonl"
    assert run(asked, model, out, stop_after=3) == [0, 1, 2]  # in the first look, with one whole batch of two
    assert run(asked, model, out, stop_after=4) == [2, 3, 4, 1]  # in the second, with none
    assert not out.exists()
    assert run(asked, model, out) == AGAIN
    assert not list(tmp_path.glob("val.jsonl.*"))
    assert read_predictions(out) == predict_split_twice(model, "val", tmp_path / "expected.jsonl")


def test_a_look_of_another_config_is_not_used(model, tmp_path, asked):
    out, other = tmp_path / "val.jsonl", with_decision(model, "most_probable")
    run(asked, model, out, stop_after=6)
    assert run(asked, other, out) == ALL + AGAIN
    # Or in the middle of its first look, beside the whole one of the other.
    run(asked, model, out, stop_after=6)
    assert run(asked, other, out, stop_after=1) == [0]
    assert run(asked, other, out) == ALL + AGAIN


def test_nothing_is_left_of_a_second_look_that_is_not_needed_any_more(model, tmp_path, asked, monkeypatch):
    out = tmp_path / "val.jsonl"
    run(asked, model, out, stop_after=6)
    assert (tmp_path / "val.jsonl.looks" / "second.jsonl.part").exists()
    monkeypatch.setattr(look_again_module, "find_parts", lambda *_: {})
    assert run(asked, model, out) == []
    assert not list(tmp_path.glob("val.jsonl.*"))


def test_a_finished_second_look_is_not_repeated(model, tmp_path, asked, monkeypatch):
    out = tmp_path / "val.jsonl"
    with monkeypatch.context() as patch:

        def full_disk(path, predictions):
            raise OSError("no space left")

        patch.setattr(look_again_module, "write_predictions", full_disk)
        with pytest.raises(OSError, match="no space left"):
            predict_split_twice(model, "val", out)
    assert asked == ALL + AGAIN
    assert run(asked, model, out) == []
    assert read_predictions(out) == predict_split_twice(model, "val", tmp_path / "expected.jsonl")


@pytest.mark.parametrize(
    ("damage", "asked_again"),
    [
        (lambda lines: lines[:3], ALL[2:]),  # a batch of two is whole
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], ALL),
        (lambda lines: [], ALL),
    ],
)
def test_what_is_lost_of_a_first_look_is_asked_again(model, tmp_path, asked, damage, asked_again):
    out, first = tmp_path / "val.jsonl", tmp_path / "val.jsonl.looks" / "first.jsonl.part"
    run(asked, model, out, stop_after=6)
    first.write_text("".join(damage(first.read_text().splitlines(keepends=True))))
    assert run(asked, model, out) == asked_again + AGAIN


def test_a_look_that_has_lost_its_beams_is_named(model, tmp_path, asked):
    out, first = tmp_path / "val.jsonl", tmp_path / "val.jsonl.looks" / "first.jsonl.part"
    run(asked, model, out, stop_after=6)
    first.write_text(first.read_text().replace('"beams"', '"beans"'))
    asked.stop_after = -1
    with pytest.raises(PredictionError, match=r"first.jsonl.part: the answer to query 0 has no beams; .*remove it"):
        predict_split_twice(model, "val", out)


def test_files_of_others_stay(model, tmp_path, asked):
    out = tmp_path / "val.jsonl"
    beside = [tmp_path / "val.jsonl.first.json", tmp_path / "val.jsonl.second", tmp_path / "val.jsonl.looks" / "mine"]
    beside[2].parent.mkdir()
    for path in beside:
        path.write_text("mine")
    run(asked, model, out)
    assert [path.read_text() for path in beside] == ["mine"] * 3
    assert [path.name for path in beside[2].parent.iterdir()] == ["mine"]


def test_a_second_look_at_other_neighbourhoods_is_started_anew(model, tmp_path, asked):
    """What the first look says decides, not only what it was made from: devices may differ in rounding."""
    model = replace(model, config=replace(model.config, data=replace(model.config.data, eval_batch=1)))
    out, folder = tmp_path / "val.jsonl", tmp_path / "val.jsonl.looks"
    assert run(asked, model, out, stop_after=6) == [*ALL, 1]
    assert run(asked, model, out) == [3]
    assert run(asked, model, out, stop_after=6) == [*ALL, 1]
    first = folder / "first.jsonl.part"
    before = first.read_text()
    first.write_text(before.replace("[14.0, 16.0", "[13.0, 15.0"))
    assert first.read_text() != before
    assert run(asked, model, out) == [1, 3]


def test_lines_without_beams_are_not_continued(model, tmp_path, asked):
    out = tmp_path / "val.jsonl"
    whole = open_split(model.config, "val", model.tokenizers, model.model_config)
    predict = profiled_predictor(model, whole.queries, StepProfiler(tmp_path, 0, "infer"))
    partial = PartialPredictions(out, whole.queries)
    asked.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        predict_queries(model, whole, partial, predict)
    asked.clear()
    asked.stop_after = -1
    assert all(prediction.beams for prediction in predict_queries(model, whole, partial, predict, with_beams=True))
    assert asked == ALL


@pytest.mark.parametrize("saliency", [False, True])
def test_all_predictions_have_a_saliency_if_it_is_configured(model, tmp_path, saliency):
    generation = replace(model.config.generation, saliency=saliency)
    model = replace(model, config=replace(model.config, generation=generation))
    predictions = predict_split_twice(model, "val", tmp_path / "val.jsonl")
    # Clips of two seconds; an answer without a window has none in any case.
    lengths = [None if row.saliency is None else len(row.saliency) for row in predictions]
    assert [lengths[row] for row in AGAIN] == ([10, 10] if saliency else [None, None])


def test_answers_are_read_with_the_durations_of_the_table(model, tmp_path, monkeypatch):
    """Not with those of the batch, which are float32."""
    given, decode = [], predict_split_module.decode_answers

    def watch(prediction, t5, durations, **options):
        given.append(durations)
        return decode(prediction, t5, durations, **options)

    monkeypatch.setattr(predict_split_module, "decode_answers", watch)
    thirds = on(model, build(tmp_path / "thirds", [replace(row, duration=61 / 3) for row in QUERIES]))
    predict_split(thirds, "val", tmp_path / "val.jsonl")
    assert given[0] == [61 / 3] * len(QUERIES)


def test_the_answer_is_that_of_the_configured_decision(model, tmp_path):
    """The most probable one of query 3 ends a second earlier than the one in the middle."""
    for decision, text in (("most_probable", "[[12, 14]]"), ("minimum_bayes_risk", "[[12, 15]]")):
        decided = with_decision(model, decision)
        assert predict_split(decided, "val", tmp_path / f"{decision}.jsonl")[3].text == text


def test_what_cannot_be_looked_at_again(stage, model, tmp_path):
    sparse = on(stage, build(tmp_path / "sparse", make=lambda video: make_video(video, range(0, 2 * FRAMES, 2))))
    # Every frame of the video is read already.
    again = predict_split_twice(sparse, "val", tmp_path / "sparse.jsonl")
    assert again == predict_split(sparse, "val", tmp_path / "once.jsonl")

    def long_video(video):
        record = make_video(video)
        return replace(record, total_frames=100, indices=np.arange(0, 100, 20, dtype=np.int32), times=record.times[:5])

    def few_of_b(video):  # the video of the second query
        few = replace(long_video(video), jpegs=make_video(video).jpegs[:5])
        return few if video == "b" else make_video(video)

    few = on(stage, build(tmp_path / "few", make=few_of_b))
    with pytest.raises(InputError, match=r"^--look_again: video b: 5 of its 10 .*--frames=10"):
        predict_split_twice(few, "val", tmp_path / "few.jsonl")
    (tmp_path / "val.jsonl.looks").write_text("mine")
    with pytest.raises(UserError, match=r"val.jsonl.looks: not a folder.*choose another --out"):
        predict_split_twice(model, "val", tmp_path / "val.jsonl")
    reference = replace(model, config=replace(model.config, behaviour="reference"))
    with pytest.raises(UserError, match=r"--look_again: the run has config\.behaviour='reference'"):
        predict_split_twice(reference, "val", tmp_path / "reference.jsonl")


def test_features_of_the_frames_are_read_in_their_place(model, tmp_path):
    """The same to rounding of the store, which float32 does not have; features of the first look alone do not do."""
    videos = VideoDataset(model.config.data.directory)
    dense = replace(model, config=replace(model.config, data=replace(model.config.data, frames=2 * FRAMES)))
    extract_features(dense, videos, tmp_path / "dense", storage_dtype="float32")
    extract_features(model, videos, tmp_path / "sparse", storage_dtype="float32")

    def with_features(name):
        data = replace(model.config.data, features=str(tmp_path / name))
        return replace(model, config=replace(model.config, data=data))

    read = predict_split_twice(with_features("dense"), "val", tmp_path / "read.jsonl")
    assert [row.text for row in read] == [
        row.text for row in predict_split_twice(model, "val", tmp_path / "encoded.jsonl")
    ]
    with pytest.raises(
        FeaturesError, match=r"^--look_again: .*sparse has features of 5 frames.*--config.data.frames=10"
    ):
        predict_split_twice(with_features("sparse"), "val", tmp_path / "none.jsonl")
