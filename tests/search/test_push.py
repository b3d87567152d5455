"""Publishing a model on a local server that does as the Hugging Face hub does."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import yaml

from calce_jax.checkpoints import model_folder
from calce_jax.checkpoints.convert.convert import convert
from calce_jax.checkpoints.convert.targets import write_run
from calce_jax.checkpoints.manager import CheckpointError
from calce_jax.checkpoints.model_folder import check_self_contained, export_model, is_model_folder, read_stage
from calce_jax.checkpoints.params_file import read_record
from calce_jax.checkpoints.workdir import resolve_init
from calce_jax.config import ConfigError, packaged_path
from calce_jax.datasets.fetched_files import FetchError, NoNetworkError
from calce_jax.inference.trained_run import load_trained_model
from calce_jax.presets.datasets import TINY_BASE
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.calibration import calibration_path
from calce_jax.search.load_searcher import open_stages
from calce_jax.search.paths import SearchError, ranker_path
from calce_jax.search.published.card import model_card
from calce_jax.search.published.install import resolve_model
from calce_jax.search.published.push import PushError, push_to_hub
from tests.helpers.published_server import run_server, set_endpoint
from tests.helpers.tiny_publication import trained_weights

SCORE = 61.28


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Workdirs of both stages, as a training leaves them: the best checkpoint of stage 2 has a score."""
    folder = tmp_path_factory.mktemp("runs")
    for stage in (1, 2):
        weights = replace(trained_weights(stage), file=packaged_path(TINY_BASE))
        config = tiny_config(stage)
        data = replace(config.data, directory="/private/data")
        write_run(folder / f"stage{stage}", weights, replace(config, data=data))
    return folder


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with run_server() as served:
        set_endpoint(monkeypatch, served.url)
        yield served


def trainables(workdir):
    return jax.tree.leaves(load_trained_model(workdir, mesh="single").trainable)


@pytest.mark.slow
def test_a_model_folder_has_the_weights_of_its_runs_and_can_be_moved(runs, tmp_path):
    (tmp_path / "made").mkdir()
    export_model(runs, tmp_path / "made")
    moved = (tmp_path / "made").rename(tmp_path / "moved")
    for stage in ("stage1", "stage2"):
        for mine, theirs in zip(trainables(moved / stage), trainables(runs / stage), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    first, second = open_stages(moved, batch=3)
    assert [stage.config.data.eval_batch for stage in (first, second)] == [3, 3]
    assert first.frozen is second.frozen  # one copy for both
    assert first.checkpoint == moved / "stage1/trained.safetensors"
    # It is a run like any other: a source of a conversion, and a start for training.
    convert(f"orbax:{moved / 'stage2'}", f"orbax:{tmp_path / 'back'}", tiny_config(1))
    for mine, theirs in zip(trainables(tmp_path / "back"), trainables(runs / "stage2"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert resolve_init(tmp_path / "new", str(moved / "stage1")).kind == "other_run"


def test_what_is_not_the_model_of_a_folder_is_refused(runs, tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    export_model(runs, folder)
    config = folder / "stage1/config.json"
    written = config.read_text()
    config.write_text(written.replace('"frames": 10', '"frames": 12'))
    with pytest.raises(ConfigError, match=r"stage1/config\.json is not the config of .*trained\.safetensors"):
        load_trained_model(folder / "stage1", mesh="single")
    for path in ("/etc/passwd", "$WORKDIR/../../another.safetensors", "owner/name"):
        config.write_text(written.replace("$WORKDIR/../base.safetensors", path))
        with pytest.raises(CheckpointError, match=r"stage1/config.json: weights.base names .*, which is not part of"):
            check_self_contained(folder)
    config.write_text(written)
    check_self_contained(folder)
    vocabulary = folder / "bert/vocab.txt"
    *words, last_but_one, last = vocabulary.read_text().splitlines()
    vocabulary.write_text("\n".join([*words, last, last_but_one]) + "\n")
    with pytest.raises(CheckpointError, match=r"the vocabulary in .* is not the one"):
        load_trained_model(folder / "stage2", mesh="single")


def test_stages_that_do_not_belong_together(runs, tmp_path, monkeypatch):
    (tmp_path / "other.safetensors").write_bytes(packaged_path(TINY_BASE).read_bytes() + b" ")
    monkeypatch.setattr(
        model_folder,
        "base_weights_path",
        lambda run: tmp_path / "other.safetensors" if run.name == "stage1" else packaged_path(TINY_BASE),
    )
    with pytest.raises(CheckpointError, match="different base weights; publish two stages"):
        export_model(runs, tmp_path)


def test_push(server, runs, tmp_path, capsys):
    said = []
    push_to_hub(runs, "someone/tiny", licence="mit", log=said.append)
    assert said == [f"uploading to {server.url}/someone/tiny"]
    assert server.tokens == {"Bearer hf_secret"}
    assert server.private == set()
    files = server.repos["someone/tiny"]
    names = {f"stage{stage}/{name}" for stage in (1, 2) for name in ("config.json", "trained.safetensors")}
    assert files.keys() == names | {"README.md", "base.safetensors", "t5/spiece.model", "bert/vocab.txt"}
    for name, content in files.items():
        assert str(tmp_path.parent).encode() not in content, name
        assert b"/private" not in content, name
        assert b"hf_secret" not in content, name
    assert not list(runs.parent.glob(".calce_push*"))
    _, header, body = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "mit",
        "library_name": "calce_jax",
        "pipeline_tag": "video-text-to-text",
        "language": "en",
        "tags": ["video-moment-retrieval", "temporal-grounding", "video-search", "jax"],
    }
    assert 'calce_jax.load("hf:someone/tiny", yes=True)' in body
    assert body.count("| not recorded | not recorded |") == 2
    # The licence and the size of the question are those that the hub states.
    asked = []
    with pytest.raises(ValueError, match="was not downloaded"):
        resolve_model("hf:someone/tiny", tmp_path, confirm=lambda offer: bool(asked.append(offer)))
    assert asked[0].licence == "mit, by its model card"
    assert asked[0].download_bytes == sum(map(len, files.values()))


def test_what_a_search_of_a_library_needs_goes_along(server, runs, tmp_path):
    made = {ranker_path(runs): ranker_path(None), calibration_path(runs): calibration_path(None)}
    try:
        for target, tiny in made.items():
            shutil.copyfile(tiny, target)
        push_to_hub(runs, "someone/tiny", log=lambda _: None)
    finally:
        for target in made:
            target.unlink()
    folder = resolve_model("hf:someone/tiny", tmp_path, confirm=lambda _: True, log=lambda _: None)
    for path, tiny in ((ranker_path(folder), ranker_path(None)), (calibration_path(folder), calibration_path(None))):
        assert path.read_bytes() == tiny.read_bytes()


def test_a_pickle_or_a_path_of_a_published_model_is_not_taken(server, runs, tmp_path):
    push_to_hub(runs, "someone/tiny", log=lambda _: None)
    files = server.repos["someone/tiny"]
    files |= {"stage1/checkpoint.pth": b"a pickle", "t5/tokenizer.pkl": b"a pickle"}
    folder = resolve_model("hf:someone/tiny", tmp_path, confirm=lambda _: True, log=lambda _: None)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pth", ".pkl")]
    files["stage1/config.json"] = files["stage1/config.json"].replace(b"$WORKDIR/../base.safetensors", b"/etc/passwd")
    with pytest.raises(CheckpointError, match="names /etc/passwd, which is not part of the model; do not use"):
        resolve_model("hf:someone/tiny", tmp_path / "again", confirm=lambda _: True, log=lambda _: None)
    assert not (tmp_path / "again/someone--tiny").exists()


def test_a_private_model_needs_the_token(server, runs, tmp_path, monkeypatch):
    push_to_hub(runs, "someone/secret", private=True, log=lambda _: None)
    assert server.private == {"someone/secret"}
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        patch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        with pytest.raises(FetchError, match="the server answers 401; correct the name; a private one needs") as told:
            resolve_model("hf:someone/secret", tmp_path, confirm=lambda _: True, log=lambda _: None)
        assert "\n" not in str(told.value)
    folder = resolve_model("hf:someone/secret", tmp_path, confirm=lambda _: True, log=lambda _: None)
    assert is_model_folder(folder)


def test_scores_are_those_that_were_recorded(runs, tmp_path):
    stage2 = read_stage(runs / "stage2")
    scored = replace(stage2, scores={"R1_avg": SCORE})
    card = model_card("a/b", [stage2, scored], None)
    assert "| stage1 | not recorded | not recorded |" in card
    assert f"| stage2 | shapes, the made-up videos of calce_jax, split `val` | {SCORE} |" in card
    assert "license:" not in card
    assert "Its publisher states no licence." in card


def test_the_score_of_the_best_checkpoint_is_published_and_that_it_knows_no_items(runs, tmp_path, monkeypatch):
    metadata = model_folder.Checkpoints.read_metadata
    monkeypatch.setattr(
        model_folder.Checkpoints, "read_metadata", lambda *given: {**metadata(*given), "trained_with_items": False}
    )
    monkeypatch.setattr(model_folder.Checkpoints, "best_step_and_metric", property(lambda _: (0, SCORE)))
    stages = export_model(runs, tmp_path)
    assert stages[1].scores == {"R1_avg": SCORE}
    assert read_record(tmp_path / "stage2/trained.safetensors")["scores"] == {"R1_avg": SCORE}
    # Also when the model folder itself is pushed.
    monkeypatch.undo()
    assert read_stage(tmp_path / "stage2").scores == {"R1_avg": SCORE}
    trained = [load_trained_model(folder / "stage2", mesh="single") for folder in (tmp_path, runs)]
    assert [model.trained_with_items for model in trained] == [False, True]


def test_what_cannot_be_pushed(server, runs, tmp_path, monkeypatch):
    for repo in ("name", "a/b/c", "owner/", "-/../x"):
        with pytest.raises(PushError, match="is not the name of a repository; write owner/name"):
            push_to_hub(runs, repo)
    with pytest.raises(SearchError, match="no trained run in"):
        push_to_hub(tmp_path, "someone/tiny")
    server.error_status["/api/repos/create"] = 403
    with pytest.raises(FetchError, match="the server answers 403; check that the token may write there") as told:
        push_to_hub(runs, "someone/tiny", log=lambda _: None)
    assert "\n" not in str(told.value)
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
        with pytest.raises(
            PushError, match=r"cannot write .*base\.safetensors \(it needs .*\); make room beside it"
        ) as told:
            push_to_hub(runs, "someone/tiny", log=lambda _: None)
    assert "\n" not in str(told.value)
    assert not list(runs.parent.glob(".calce_push*"))
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(NoNetworkError, match="cannot be reached"):
        push_to_hub(runs, "someone/tiny", log=lambda _: None)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(PushError, match="there is no token of the Hugging Face hub; set"):
        push_to_hub(runs, "someone/tiny")
