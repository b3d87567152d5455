"""Predictions of a split: an interrupted job continues only lines of the same model, split and tables."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from calce_jax.batch import Batch
from calce_jax.datasets.tables import VideoRecord, build_tables, rebuild_queries
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.inference import predict_split as predict_split_module
from calce_jax.inference.answers import Answer
from calce_jax.inference.predict_split import DatasetSplit, open_split, predict_examples, predict_split
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.moments.annotations import Annotation
from calce_jax.moments.predictions import PredictionError
from calce_jax.moments.scoring import BeamHypothesis, QueryMoments
from calce_jax.storage.locks import FileLock, LockError
from calce_jax.text.text_row import RowFlag
from calce_jax.video.decode import encode_jpeg
from tests.helpers.search_stages import make_stages
from tests.helpers.traces import traced_steps

BATCH, TOTAL = 4, 10


def make_video(video, seed=0):
    noise = np.random.default_rng((ord(video), seed)).integers(0, 256, (5, 28, 28, 3), np.uint8)
    return VideoRecord(
        video,
        50,
        10.0,
        5.0,
        np.arange(0, 50, 10, dtype=np.int32),
        np.arange(5, dtype=np.float32),
        encode_jpeg(noise),
        [],
    )


def rows(count=TOTAL, **changes):
    return [replace(Annotation(n, "ab"[n % 2], f"a circle {n}", [], None, [[0, 1]]), **changes) for n in range(count)]


@pytest.fixture
def prepared(tmp_path):
    build_tables(tmp_path / "prepared", "shapes", {"train": rows(3), "val": rows(), "test": rows()}, make_video)
    return tmp_path / "prepared"


@pytest.fixture(scope="module")
def stage():
    return make_stages()[0]


@pytest.fixture
def trained(stage, prepared, tmp_path):
    """A model with a checkpoint of arbitrary content."""
    for step, content in (("3", "earlier"), ("5", "later")):
        (tmp_path / "run/checkpoints" / step / "state").mkdir(parents=True)
        (tmp_path / "run/checkpoints" / step / "state/weights").write_text(content)
    data = replace(stage.config.data, directory=str(prepared), eval_batch=BATCH)
    return replace(stage, config=replace(stage.config, data=data), checkpoint=tmp_path / "run/checkpoints/5")


@pytest.fixture
def predicted_rows(monkeypatch):
    """Replace the model's predictions; returns the rows that were predicted."""
    predicted_rows = []

    def predict_answers(config, split: DatasetSplit, t5, predict, first_batch=0):
        for row in range(first_batch * config.data.eval_batch, len(split.queries)):
            predicted_rows.append(row)
            yield Answer(row, QueryMoments([[0.0, float(row), 0.5]], f"[[0, {row}]]", "exact"), [], {}, [], RowFlag(0))

    monkeypatch.setattr(predict_split_module, "predict_answers", predict_answers)
    monkeypatch.setattr(TrainedModel, "compile_predictor", lambda *_: None)
    return predicted_rows


@pytest.fixture
def expected(trained, predicted_rows, tmp_path):
    """The file that an uninterrupted job writes."""
    predict_split(trained, "val", tmp_path / "expected.jsonl")
    predicted_rows.clear()
    return (tmp_path / "expected.jsonl").read_bytes()


@dataclass
class Job:
    """An interrupted job, with six and a half lines of its output.

    Fields:
      trained: the model.
      out: the output.
      predicted_rows: rows that were predicted since.
      expected: content of the finished output.
    """

    trained: TrainedModel
    out: Path
    predicted_rows: list[int]
    expected: bytes

    @property
    def part(self):
        return self.out.with_name(f"{self.out.name}.part")

    @property
    def inputs_path(self):
        return self.out.with_name(f"{self.out.name}.part.json")

    def run(self, trained=None, split="val"):
        return predict_split(trained or self.trained, split, self.out)

    def check_finished(self):
        assert self.out.read_bytes() == self.expected
        assert list(self.out.parent.iterdir()) == [self.out]


@pytest.fixture
def job(trained, predicted_rows, expected, tmp_path, monkeypatch):
    out, write, written = tmp_path / "out/val.jsonl", predict_split_module.write_line, []

    def stop(file, line):
        if len(written) == 6:
            file.write(line[:20])
            raise KeyboardInterrupt
        written.append(line)
        write(file, line)

    with monkeypatch.context() as patch:
        patch.setattr(predict_split_module, "write_line", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_split(trained, "val", out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["val.jsonl.part", "val.jsonl.part.json"]
    predicted_rows.clear()
    return Job(trained, out, predicted_rows, expected)


def with_data(trained, **changes):
    return replace(trained, config=replace(trained.config, data=replace(trained.config.data, **changes)))


def test_a_job_goes_on_with_the_first_incomplete_batch(job, caplog):
    assert [prediction.qid for prediction in job.run()] == list(range(TOTAL))
    assert job.predicted_rows == list(range(BATCH, TOTAL))
    assert caplog.text == ""
    job.check_finished()


def test_a_line_and_a_score_are_of_the_windows_of_all_beams(trained):
    (query, *_) = open_split(trained.config, "val", trained.tokenizers, trained.model_config).queries
    moments = QueryMoments(
        [[0.0, 4.0, 0.9]], "[[0, 4]]", "exact", [], [0.9], [[1.0, 2.0, 0.4], [0.0, 1.0, 0.1]], [0.4, 0.1]
    )
    answer = Answer(0, moments, [], {}, [], RowFlag(0))
    line = predict_split_module.to_prediction(query, answer.moments)
    assert (line.windows, line.support) == ([[0, 4, 0.9], [1, 2, 0.4], [0, 1, 0.1]], [0.9, 0.4, 0.1])
    assert line.answer_windows == 1
    assert predict_split_module.make_case(query, answer).predicted_windows == line.windows
    alone = replace(answer, moments=replace(moments, other_windows=[], other_support=[]))
    assert predict_split_module.to_prediction(query, alone.moments).answer_windows is None


def test_items_that_the_run_never_saw_are_warned_of(trained, caplog):
    split = open_split(trained.config, "val", trained.tokenizers, trained.model_config)
    known = replace(split, queries=[replace(query, items=["circle"]) for query in split.queries[:2]])
    bare = replace(trained, trained_with_items=False)
    for model, asked in ((trained, known), (bare, split)):
        predict_split_module.warn_unseen_items(model, asked)
    assert caplog.text == ""
    predict_split_module.warn_unseen_items(bare, known)
    assert "val: 2 queries have items in their prompts, and the run was trained on queries without" in caplog.text


def test_where_all_lines_are_there_nothing_is_asked(job):
    job.part.write_bytes(job.expected)
    assert len(job.run()) == TOTAL
    assert job.predicted_rows == []
    job.check_finished()


@pytest.mark.parametrize("described", [True, False])
def test_an_empty_part_is_a_beginning(job, described):
    job.part.write_bytes(b"")
    if not described:
        job.inputs_path.unlink()
    job.run()
    assert job.predicted_rows == list(range(TOTAL))
    job.check_finished()


@pytest.mark.parametrize(
    ("damage", "kept", "said"),
    [
        (lambda lines: [*lines[:5], lines[5][:-1]], 4, ""),  # its end alone is missing
        (lambda lines: [*lines[:7], lines[7][:-1]], 4, ""),
        (lambda lines: [*lines[:9], lines[9][:-1]], 8, ""),
        (lambda lines: [lines[0][:9]], 0, ""),
        (lambda lines: [*lines[:5], b"\xff\xfe\x00\n", lines[6]], 4, "line 6: damaged"),
        (lambda lines: [*lines[:9], b"\xff"], 8, ""),
        (lambda lines: [b"\0" * 300 + b"\n", *lines[1:6]], 0, "line 1: damaged"),
        (lambda lines: [*lines[:4], *lines[:4]], 4, "line 5: damaged, or not the answer"),  # two writers
        (lambda lines: [*lines, *lines[:2]], TOTAL, "line 11: damaged"),
        (lambda lines: [*lines[:4], b"[]\n", b"{}\n"], 4, "line 5: damaged"),
        (lambda lines: [*lines[:4], lines[4].replace(b'"pred_rel', b'"red_rel'), lines[5]], 4, "line 5: damaged"),
    ],
)
def test_what_is_damaged_is_asked_again(job, caplog, damage, kept, said):
    job.part.write_bytes(b"".join(damage(job.expected.splitlines(keepends=True))))
    job.run()
    assert job.predicted_rows == list(range(kept, TOTAL))
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)
    job.check_finished()


def test_on_request_a_prediction_has_a_saliency_for_each_clip(trained, monkeypatch, tmp_path):
    moments = QueryMoments([[2.0, 4.0, 1.0]], "[[2, 4]]", "exact", [BeamHypothesis([[2, 4]], 1.0)])
    answers = [Answer(row, moments, [], {}, [], RowFlag(0)) for row in range(TOTAL)]
    monkeypatch.setattr(predict_split_module, "predict_answers", lambda *_, **__: iter(answers))
    monkeypatch.setattr(TrainedModel, "compile_predictor", lambda *_: None)
    for row in predict_split(with_saliency(trained), "val", tmp_path / "saliency.jsonl"):
        assert row.duration
        assert len(row.saliency) == int(row.duration / 2)
        assert int(np.argmax(row.saliency)) == 1
    assert all(row.saliency is None for row in predict_split(trained, "val", tmp_path / "windows.jsonl"))


def other_step(trained):
    assert trained.checkpoint
    return replace(trained, checkpoint=trained.checkpoint.with_name("3"))


def saved_anew(trained):
    assert trained.checkpoint
    (trained.checkpoint / "state/weights").write_text("of another run")
    return trained


def best_beam(trained):
    generation = replace(trained.config.generation, window_source="best_beam")
    return replace(trained, config=replace(trained.config, generation=generation))


def with_saliency(trained):
    generation = replace(trained.config.generation, saliency=True)
    return replace(trained, config=replace(trained.config, generation=generation))


def merged_anew(trained):
    splits = {"train": rows(3), "val": rows(stage1_windows=[[0, 1]]), "test": rows()}
    rebuild_queries(trained.config.data.directory, "shapes", splits)
    return trained


def prepared_anew(trained):
    splits = {"train": rows(3), "val": rows(), "test": rows()}
    build_tables(trained.config.data.directory, "shapes", splits, lambda video: make_video(video, seed=1))
    return trained


def other_base(trained):
    base = Path(trained.config.data.directory) / "base.safetensors"
    base.write_bytes(b"weights")
    return replace(trained, config=replace(trained.config, weights=replace(trained.config.weights, base=str(base))))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_step, "checkpoint.sha256: .*; checkpoint.step: 5 there, 3 here"),
        (saved_anew, 'checkpoint.sha256: "[0-9a-f]+... there, "[0-9a-f]+... here'),
        (
            lambda trained: replace(trained, checkpoint=None),
            "checkpoint.sha256: .*; .*step: 5 there, null here",
        ),
        (lambda trained: with_data(trained, use_captions=False), "config.data.use_captions: true there, false here"),
        (lambda trained: replace(trained, config=replace(trained.config, seed=7)), "config.seed: 42 there, 7 here"),
        (best_beam, 'config.generation.window_source: "all_beams" there, "best_beam" here'),
        (merged_anew, 'queries.sha256: "[0-9a-f]+... there, "[0-9a-f]+... here'),
        (prepared_anew, 'videos.files: "[0-9a-f]+... there, "[0-9a-f]+... here'),
        (other_base, r"base: null there, \[7, [0-9]+\] here"),
    ],
)
def test_what_something_else_answered_is_not_continued(job, caplog, change, named):
    job.run(change(job.trained))
    assert job.predicted_rows == list(range(TOTAL))
    (line,) = caplog.messages
    assert re.fullmatch(f"{re.escape(str(job.part))} is started anew: {named}", line)
    job.check_finished()


def test_lines_without_a_saliency_are_not_continued_with_one(job, caplog):
    job.run(with_saliency(job.trained))
    assert job.predicted_rows == list(range(TOTAL))
    assert "started anew: config.generation.saliency: false there, true here" in caplog.text


def test_another_split_is_not_continued(job, caplog):
    job.run(split="train")
    assert job.predicted_rows == [0, 1, 2]
    assert 'split: "val" there, "train" here' in caplog.text


def test_a_split_of_the_same_queries_is_another(job, caplog):
    job.run(split="test")
    assert job.predicted_rows == list(range(TOTAL))
    assert 'split: "val" there, "test" here' in caplog.text


def test_where_folders_lie_and_how_many_are_asked_at_a_time_does_not_matter(job, tmp_path):
    moved = (tmp_path / "prepared").rename(tmp_path / "moved")
    changed = with_data(job.trained, directory=str(moved), eval_batch=3)
    job.run(replace(changed, config=replace(changed.config, mesh="a100x4")))
    assert job.predicted_rows == list(range(6, TOTAL))
    job.check_finished()


@pytest.mark.parametrize(
    ("content", "said"), [(None, ".*part.json is missing"), (b"{", "is not JSON"), (b"\xff", "is"), (b"[]", "object")]
)
def test_a_part_that_does_not_say_what_made_it_is_not_continued(job, caplog, content, said):
    job.inputs_path.unlink() if content is None else job.inputs_path.write_bytes(content)
    job.run()
    assert job.predicted_rows == list(range(TOTAL))
    assert re.search(f"is started anew: its inputs are unknown: .*{said}", caplog.text)
    job.check_finished()


def test_a_file_that_is_not_one_line_a_query_does_not_get_its_name(job, monkeypatch):
    write = predict_split_module.write_line
    with monkeypatch.context() as patch:
        patch.setattr(predict_split_module, "write_line", lambda file, line: [write(file, line) for _ in range(2)])
        with pytest.raises(PredictionError, match=r"val\.jsonl\.part, line 6: expected qid 5, .*: remove it and run"):
            job.run()
    assert not job.out.exists()
    with monkeypatch.context() as patch:
        patch.setattr(predict_split_module, "write_line", lambda *_: None)
        with pytest.raises(PredictionError, match=r"val\.jsonl\.part, line 5: expected qid 4"):
            job.run()
    with monkeypatch.context() as patch:
        last = json.loads(job.expected.splitlines()[-1])["qid"]

        def write_last_twice(file, line):
            for _ in range(1 + (json.loads(line)["qid"] == last)):
                write(file, line)

        patch.setattr(predict_split_module, "write_line", write_last_twice)
        with pytest.raises(PredictionError, match=rf"val\.jsonl\.part, line {TOTAL + 1}: expected no such line"):
            job.run()
    job.run()
    job.check_finished()


def test_a_second_writer_is_refused_and_the_first_finishes(job, monkeypatch):
    write, refused = predict_split_module.write_line, []

    def second(file, line):
        if not refused:
            refused.append("")
            with pytest.raises(LockError, match=f"process {os.getpid()} on .* writes here; wait until it") as told:
                job.run()
            refused[0] = str(told.value)
        write(file, line)

    monkeypatch.setattr(predict_split_module, "write_line", second)
    job.run()
    assert refused[0].startswith(f"{job.out}.lock: ")
    job.check_finished()


def test_a_killed_writer_does_not_lock_the_next_one_out(job):
    script = (
        "import os, sys; from calce_jax.storage.locks import FileLock; FileLock(sys.argv[1]).__enter__(); os._exit(9)"
    )
    command = [sys.executable, "-c", script, f"{job.out}.lock"]
    subprocess.run(command, check=False, cwd=Path(__file__).parents[2])
    assert json.loads((job.out.parent / "val.jsonl.lock").read_text())["pid"] != os.getpid()
    job.run()
    job.check_finished()


def test_an_output_in_a_locked_folder_beside_it_is_another(trained, predicted_rows, expected, tmp_path):
    with FileLock(tmp_path / "a.jsonl.lock"):
        predict_split(trained, "val", tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == expected


def test_some_queries_are_asked_as_the_whole_split_is(trained, monkeypatch):
    """The same batch size and length of answers, so that the program of the whole split serves."""
    asked, limits = [], []

    def compile_predictor(model, max_duration):
        limits.append(max_duration)
        return lambda batches: asked.extend(batches) or iter(())

    monkeypatch.setattr(TrainedModel, "compile_predictor", compile_predictor)
    assert predict_examples(trained, "val", [7, 2]) == []
    (batch,) = asked
    assert batch.row_mask.tolist() == [True, True, False, False]
    assert batch.example_index[:2].tolist() == [0, 1], "rows of answers count within the queries asked"
    whole = open_split(trained.config, "val", trained.tokenizers, trained.model_config)
    batches = list(whole.make_batches(0))
    for field in ("tokens", "frames"):
        expected = np.concatenate([getattr(each, field) for each in batches])
        np.testing.assert_array_equal(getattr(batch, field)[:2], expected[[7, 2]])
        assert getattr(batch, field).shape == getattr(batches[0], field).shape
    assert limits == [max(query.duration for query in whole.queries)]


def test_batches_are_traced(trained, tmp_path, monkeypatch):
    sizes = ("frames", "image_size", "captions", "bert_tokens", "text_tokens", "windows", "answer_tokens")
    batches = [Batch.zeros(1, **dict.fromkeys(sizes, 0))] * 6

    def predict_answers(config, split, t5, predict, first_batch=0):
        assert list(predict(batches)) == batches
        for row in range(len(split.queries)):
            yield Answer(row, QueryMoments([[0.0, float(row), 0.5]], f"[[0, {row}]]", "exact"), [], {}, [], RowFlag(0))

    monkeypatch.setattr(predict_split_module, "predict_answers", predict_answers)
    monkeypatch.setattr(TrainedModel, "compile_predictor", lambda *_: iter)
    predict_split(trained, "val", tmp_path / "out.jsonl", StepProfiler(tmp_path / "profile", 2, "infer"))
    assert traced_steps(tmp_path / "profile", "infer") == [4, 5]
