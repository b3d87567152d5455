"""The whole road, from mp4s to moments, at the smallest size there is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from calce_jax.config import ConfigError, packaged_path, read_config, to_dict, validate
from calce_jax.errors import UserError
from calce_jax.inference import predict_split as answering
from calce_jax.inference.answers import frame_treatments
from calce_jax.inference.predict_split import predict_examples, predict_split
from calce_jax.inference.trained_run import load_trained_model
from calce_jax.input_pipeline.dataset import open_dataset
from calce_jax.input_pipeline.example import Query
from calce_jax.moments.predictions import Prediction, read_predictions
from calce_jax.presets.datasets import TINY_BASE
from calce_jax.search.inputs import load_captions
from calce_jax.search.load_searcher import open_stages
from calce_jax.search.paths import SearchError
from calce_jax.search.results import break_ties_across_videos, write_results
from calce_jax.search.searcher import Searcher
from calce_jax.storage.disk_cache import DiskCache
from configs.calce import get_config
from data.shapes import demo_pipeline as demo
from data.shapes import demo_scores
from tests.helpers.pipeline import shorten


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A demo of a few videos and few steps: too little to learn, enough to pass every part."""
    out = tmp_path_factory.mktemp("road")
    of_the_demo = demo.stage_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "stage_config", lambda out, stage: shorten(of_the_demo(out, stage)))
        results = demo.run_demo(out, {"train": 5, "val": 4, "test": 6})
    return out, results


@pytest.mark.release
def test_the_demo_scores_both_stages_and_shows_them(road):
    out, results = road
    written = json.loads((out / "metrics.json").read_text())
    assert written == results
    for part in ("stage1", "stage2"):
        assert {"R1@0.5", "R1@0.7", "mIoU"} <= written[part].keys()
    assert written["baselines"].keys() == {"whole_video", "random"}
    assert {"visual", "caption"} <= written["by_kind"].keys() <= {"visual", "caption", "several"}
    page = (out / "report.html").read_text()
    assert open_dataset(out / "prepared", "test")[0].query in page
    assert list((out / "stage1").glob("events.out.tfevents*"))
    assert "stage 2" in demo_scores.format_results(results)


@pytest.mark.release
def test_stage_2_reads_the_windows_that_stage_1_wrote(road):
    out, _ = road
    found = {
        p.qid: sorted(window[:2] for window in p.windows)
        for p in read_predictions(out / "predictions/stage1_train.jsonl")
    }
    for query in open_dataset(out / "prepared", "train").queries():
        expected = found[query.qid] or [[0.0, query.duration]]
        assert query.stage1_windows is not None
        np.testing.assert_allclose(query.stage1_windows, expected)


@pytest.mark.release
def test_an_interrupted_inference_goes_on_with_the_first_incomplete_batch(road, tmp_path, monkeypatch):
    out, _ = road
    trained = load_trained_model(out / "stage2")
    whole = predict_split(trained, "test", tmp_path / "whole.jsonl")
    batch, written = trained.config.data.eval_batch, []
    assert len(whole) > batch

    def killed(file, line):
        if len(written) == batch:
            file.write(line[:20])
            raise KeyboardInterrupt
        written.append(line)
        write(file, line)

    write = answering.write_line
    with monkeypatch.context() as patch:
        patch.setattr(answering, "write_line", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_split(trained, "test", tmp_path / "cut.jsonl")
    assert predict_split(trained, "test", tmp_path / "cut.jsonl") == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.jsonl", "whole.jsonl"]
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(answering, "write_line", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_split(trained, "test", tmp_path / "cut.jsonl")
    # A run that is opened anew is the same run, and one without captions is another.
    silent = load_trained_model(out / "stage2", use_captions=False)
    predict_split(silent, "test", tmp_path / "silent.jsonl")
    predict_split(silent, "test", tmp_path / "cut.jsonl")
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "silent.jsonl").read_bytes()


@pytest.mark.release
def test_some_queries_are_answered_as_with_the_whole_split(road):
    out, _ = road
    predictions = read_predictions(out / "predictions/stage2_test.jsonl")
    for memory in ({}, {"batch": 1, "group": 1}, {"batch": 2, "group": 2}):
        answers = predict_examples(load_trained_model(out / "stage2", **memory), "test", [4, 0])
        assert [answer.moments.windows for answer in answers] == [predictions[row].windows for row in (4, 0)]


@pytest.mark.release
def test_trained_runs_search_a_video_with_its_captions(road, tmp_path):
    out, _ = road
    video = sorted((out / "shapes/videos").glob("*test*.mp4"))[0]
    captions = load_captions(video, out / "shapes/srts")
    assert captions
    searcher = Searcher(open_stages(out), DiskCache(tmp_path / "cache"))
    queries = ["A red circle moves to the left.", "Someone talks about a lighthouse."]
    searched = searcher.search(video, queries, captions)
    write_results(tmp_path, break_ties_across_videos([searched]), max_moments=3)
    (entry,) = json.loads((tmp_path / "moments.json").read_text())
    assert [query["query"] for query in entry["queries"]] == queries
    for query in entry["queries"]:
        for moment in query["moments"]:
            assert 0 <= moment["start"] < moment["end"] <= entry["duration"]
            assert 0 < moment["score"] <= 1
    assert (tmp_path / "videos" / video.name).read_bytes() == video.read_bytes()
    with pytest.raises(SearchError, match="query 2 is empty"):
        searcher.search(video, ["something", "  "])


class FakeModel(NamedTuple):
    """Answers with the whole video before training, with windows a second too long in stage 1, exactly in stage 2."""

    stage: int
    use_captions: bool | None = None

    def windows(self, query: Query) -> list[list[float]]:
        true = query.windows.tolist()
        if self.stage == 0:
            return [[0.0, query.duration]]
        if self.use_captions is False:
            return [[0.0, 1.0]]
        return true if self.stage == 2 else [[max(0.0, start - 1), end] for start, end in true]


@pytest.mark.slow
def test_the_demo_scores_each_model_on_what_it_was_given(tmp_path, monkeypatch):
    """All steps but the neural ones: stage 2, and it alone, is told the windows of stage 1."""
    trained, reported, given = [], [], {}

    def predict(model, split, path):
        queries = list(open_dataset(tmp_path / "prepared", split).queries())
        given[path.name] = [None if q.stage1_windows is None else q.stage1_windows.tolist() for q in queries]
        return [Prediction(q.qid, q.query, q.video, [[*w, 0.5] for w in model.windows(q)]) for q in queries]

    monkeypatch.setattr(demo, "load_base_model", lambda config: FakeModel(0))
    monkeypatch.setattr(
        demo, "load_trained_model", lambda path, use_captions=None: FakeModel(int(path.name[-1]), use_captions)
    )
    monkeypatch.setattr(demo, "store_features", lambda out: None)
    monkeypatch.setattr(demo, "train_stage", lambda out, stage: trained.append(stage))
    monkeypatch.setattr(demo, "predict_split", predict)
    monkeypatch.setattr(demo, "write_report", lambda out, stages, results: reported.append(stages))
    results = demo.run_demo(tmp_path, {"train": 2, "val": 2, "test": 3})
    assert json.loads((tmp_path / "metrics.json").read_text()) == results
    assert trained == [1, 2]
    assert reported == [{"stage 1": FakeModel(1), "stage 2": FakeModel(2)}]
    assert results["base"] == results["baselines"]["whole_video"]
    assert results["stage2"]["R1@0.7"] == 100
    assert 0 < results["stage1"]["mIoU"] < 100
    assert results["stage2_captions_withheld"]["R1@0.5"] == 0
    assert "stage 2" in demo_scores.format_results(results)

    queries = list(open_dataset(tmp_path / "prepared", "test").queries())
    of_stage1 = [FakeModel(1).windows(query) for query in queries]
    assert given["stage2_test.jsonl"] == of_stage1
    assert given["stage2_test_without_captions.jsonl"] == [[[0.0, 1.0]]] * len(queries)
    assert [query.stage1_windows.tolist() for query in queries] == of_stage1, "the tables are restored"


@pytest.mark.parametrize(
    ("stage1", "stage2", "says"),
    [
        (20.0, 20.1, "Stage 1 is no better than random windows; train on more videos (--train_videos)."),
        (20.1, 0.0, "Stage 2 is no better than"),
        (0.0, 5.0, "Stage 1 and stage 2 are no better than"),
        (20.1, 40.0, ""),
    ],
)
def test_the_report_says_which_stage_is_no_better_than_chance(stage1, stage2, says):
    def scores(mean_iou):
        return dict.fromkeys(demo_scores.HEADLINE_METRICS, 1.0) | {"mIoU": mean_iou}

    results = {
        "base": scores(0.0),
        "stage1": scores(stage1),
        "stage2": scores(stage2),
        "baselines": {"random": scores(20.0), "whole_video": scores(24.0)},
        "by_kind": {},
    }
    note = demo_scores.summary_tables(results)[0].note
    assert note.startswith(says or "IoU is the length")
    assert ("random windows;" in demo_scores.format_results(results)) == bool(says)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("changed", ["features", "base", "adapters"])
def test_a_demo_of_an_earlier_version_is_refused_before_anything_is_made(tmp_path, stage, changed):
    config = demo.stage_config(tmp_path, stage)
    (tmp_path / f"stage{stage}").mkdir()
    earlier = {
        "features": replace(config, data=replace(config.data, features="")),
        "base": replace(config, weights=replace(config.weights, base=TINY_BASE)),
        "adapters": replace(config, lora=replace(config.lora, rank=8)),
    }[changed]
    (tmp_path / f"stage{stage}/config.json").write_text(json.dumps(to_dict(earlier)))
    with pytest.raises(UserError, match=rf"stage{stage}: a run of an earlier version.*; remove {tmp_path}, or choose"):
        demo.run_demo(tmp_path, {"val": 2})
    assert [path.name for path in tmp_path.iterdir()] == [f"stage{stage}"]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: no such file"):
        read_config(tmp_path)


def test_what_comes_with_the_project_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(validate(get_config("shapes,stage=1")))))
    monkeypatch.chdir(tmp_path)
    config = read_config(tmp_path)
    for path in (config.text.t5_tokenizer, config.text.bert_tokenizer, config.weights.base):
        assert packaged_path(path).exists()


def test_frames_that_no_slot_holds_are_dropped():
    index, slot_mask, is_keyframe = np.array([1, 3, 0]), np.array([True, True, False]), np.array([True, False, False])
    assert frame_treatments(index, slot_mask, is_keyframe, 5) == ["dropped", "full", "dropped", "compressed", "dropped"]
