"""The data of a run: what is refused before anything is compiled, and the evaluation."""

from dataclasses import replace

import numpy as np
import pytest

from calce_jax.config import packaged_path
from calce_jax.datasets.tables import build_tables
from calce_jax.inference.answers import Answer
from calce_jax.inference.predict_split import DatasetSplit
from calce_jax.input_pipeline.dataset import MomentDataset, TablesError, open_dataset
from calce_jax.input_pipeline.example import Query
from calce_jax.moments.scoring import QueryMoments, score_moments
from calce_jax.presets.runs import get_preset
from calce_jax.text.text_row import RowFlag
from calce_jax.text.tokenizers import load_t5
from calce_jax.training import run_data
from tests.helpers.stored_features import FRAMES, TRAIN, VAL, make_video


def query(number, **fields):
    return Query(number, "v", 0, "A cat.", [], 8.0, stage1_windows=None, kind=None, **fields)


def test_validation_scores_by_the_originals_protocol(monkeypatch):
    scores = {"reference": {"R1_avg": 1.0, "rank": "given"}, "official": {"R1_avg": 2.0}}
    monkeypatch.setattr(run_data, "predict_answers", lambda *_: [])
    monkeypatch.setattr(run_data, "evaluate_cases", lambda cases: scores)
    dataset = MomentDataset.__new__(MomentDataset)
    dataset._length = 0
    split = DatasetSplit(dataset, [], lambda first_batch: [])
    t5 = load_t5(packaged_path("calce_jax/assets/tiny/t5"))
    evaluation = run_data.evaluate_split(get_preset("shapes,stage=1"), split, t5, lambda batches: iter(()))
    assert evaluation.metrics == {"R1_avg": 1.0}


def test_absent_queries_are_predicted_and_not_scored(monkeypatch):
    """The protocol would divide by their number of windows."""
    windows = [np.array([[1.0, 3.0]]), np.zeros((0, 2))]
    queries = [query(n, windows=windows[n], is_absent=n == 1) for n in range(2)]
    moments = [score_moments([text], [0.0], 8, window_order="score") for text in ("[[1, 3]]", "[]")]
    answers = [Answer(n, moments[n], [], {}, [], RowFlag(0)) for n in range(2)]
    monkeypatch.setattr(run_data, "predict_answers", lambda *_: iter(answers))
    config = get_preset("shapes,stage=1")
    config = replace(config, loop=replace(config.loop, samples=0))
    t5 = load_t5(packaged_path("calce_jax/assets/tiny/t5"))
    dataset = MomentDataset.__new__(MomentDataset)
    dataset._length = 0
    split = DatasetSplit(dataset, queries, lambda first_batch: [])
    metrics = run_data.evaluate_split(config, split, t5, lambda batches: iter(())).metrics
    assert (metrics["queries"], metrics["R1_avg"], metrics["mAP"]) == (1, 100, 100)


def test_absent_queries_of_the_evaluated_split_have_scores_of_their_own(monkeypatch, tmp_path):
    rows = [VAL[0], replace(VAL[1], windows=[]), replace(VAL[1], qid=2, windows=[])]
    build_tables(tmp_path, "shapes", {"val": rows}, make_video)
    found = [QueryMoments([[0.0, 1.0, 0.5]], "[[0, 1]]", "exact", [], [0.5]), QueryMoments([], "", "empty")]
    answers = [Answer(row, found[row > 1], [], {}, [], RowFlag(0)) for row in range(3)]
    monkeypatch.setattr(run_data, "predict_answers", lambda *_: answers)
    dataset = open_dataset(tmp_path, "val")
    split = DatasetSplit(dataset, list(dataset.queries()), lambda first_batch: [])
    config = get_preset("shapes,stage=1")
    config = replace(config, loop=replace(config.loop, samples=0))
    t5 = load_t5(packaged_path("calce_jax/assets/tiny/t5"))
    metrics = run_data.evaluate_split(config, split, t5, lambda batches: iter(())).metrics
    assert (metrics["R1@0.5"], metrics["queries"]) == (100, 1)
    # Of the two absent queries one ties with the present one, and one is answered [].
    assert (metrics["AUROC"], metrics["answered_none"], metrics["absent"]) == (75, 50, 2)


def test_a_split_without_true_windows_is_refused_at_the_start(tmp_path):
    build_tables(tmp_path, "shapes", {"train": TRAIN, "val": [replace(row, windows=None) for row in VAL]}, make_video)
    config = get_preset("shapes,stage=1")
    data = replace(config.data, directory=str(tmp_path), frames=FRAMES, batch=1, eval_batch=1)
    with pytest.raises(
        TablesError, match=r"no query of val in .* has true windows; evaluate another split, with --conf"
    ):
        run_data.open_run_data(replace(config, data=data))


@pytest.mark.parametrize(
    ("merged", "message"),
    [
        (
            (),
            r"the tables in .* have no windows of stage 1 in train; run `calce infer` on stage 1, `calce merge`, then",
        ),
        (("train",), "have no windows of stage 1 in val"),
        (("train", "val"), ""),
    ],
)
def test_stage_2_needs_tables_with_windows_of_stage_1(tmp_path, merged, message):
    # One query of a split is enough: stage 1 may have answered few.
    splits = {
        split: [replace(rows[0], stage1_windows=[[0, 1]]), *rows[1:]] if split in merged else rows
        for split, rows in (("train", TRAIN), ("val", VAL))
    }
    build_tables(tmp_path, "shapes", splits, make_video)

    def open_stage(stage):
        config = get_preset(f"shapes,stage={stage}")
        data = replace(config.data, directory=str(tmp_path), frames=FRAMES, batch=1, eval_batch=1)
        return run_data.open_run_data(replace(config, data=data))

    assert open_stage(1).steps_per_epoch == len(TRAIN)
    if message:
        with pytest.raises(TablesError, match=message):
            open_stage(2)
    else:
        assert open_stage(2).tables["train"]["queries"] == len(TRAIN)
