"""Published models by name, against a local server with tiny files in the published layouts."""

import errno
import importlib.util
import io
import json
import shutil
import sys
from collections import namedtuple
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from safetensors.numpy import load_file

import calce_jax
from calce_jax.checkpoints.model_folder import is_model_folder
from calce_jax.config import PATH_FIELDS, diff, packaged_path, read_config, to_dict
from calce_jax.datasets import sources
from calce_jax.datasets.fetched_files import FetchError, NoNetworkError
from calce_jax.errors import UserError
from calce_jax.presets.datasets import TINY_BASE
from calce_jax.presets.runs import get_preset
from calce_jax.search.published import conversion
from calce_jax.search.published.install import InstallError, ModelNotHereError, resolve_model
from calce_jax.search.published.push import push_to_hub
from calce_jax.search.published.store import ModelNameError, default_models_dir, model_paths
from calce_jax.search.samples import load_samples
from calce_jax.storage.atomic_files import write_error
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.locks import FileLock, LockError
from tests.helpers.commands import run_script
from tests.helpers.published_server import COMMIT, lead_drive_to, run_server, set_endpoint
from tests.helpers.tiny_publication import publish, serve, trained_weights

NAME = "calce-qvh"
MODELS = dict(sources.MODELS)  # as published; the fixture `server` has tiny ones in their place
QUERY = "A yellow circle moves to the right."


@pytest.fixture(scope="module")
def publication(tmp_path_factory):
    pytest.importorskip("torch")
    return publish(tmp_path_factory.mktemp("published"))


@pytest.fixture
def server(publication, monkeypatch, tmp_path):
    """A server with the parts of calce-qvh at the tiny size, whose runs are those of the shapes dataset."""
    files = sum(len(content) for part in publication.values() for content in part.values())
    model = replace(sources.MODELS[NAME], run="shapes", download_bytes=files, disk_bytes=3_000_000)
    monkeypatch.setitem(sources.MODELS, NAME, model)
    monkeypatch.setenv("CALCE_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies"))
    with run_server() as served:
        set_endpoint(monkeypatch, served.url)
        lead_drive_to(served, monkeypatch)
        serve(served, model, publication)
        yield served


def agree(_):
    return True


def install(name=NAME, **more):
    return resolve_model(name, confirm=agree, log=lambda _: None, **more)


def one_line(error: UserError) -> str:
    assert "\n" not in str(error)
    assert error.reason
    assert error.remedy
    return str(error)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def moments_of(model, sample):
    return [(moment.start, moment.end, round(moment.score, 5)) for moment in model.search(sample.video, QUERY)]


@pytest.mark.release
def test_a_model_by_name_is_fetched_converted_published_and_opened(server, tmp_path, monkeypatch):
    """One download and conversion; then without a network; then pushed, and fetched again from the hub."""
    cache, sample = DiskCache(tmp_path / "cache"), load_samples()[0]
    model = calce_jax.load(NAME, yes=True, cache=cache)
    found = moments_of(model, sample)
    assert found
    folder = tmp_path / "models" / NAME
    assert {path.name for path in folder.parent.iterdir()} == {NAME}
    server.requests.clear()
    assert moments_of(calce_jax.load(NAME, cache=cache), sample) == found
    arguments = (sample.video, QUERY, f"--checkpoint={NAME}", "--json", f"--cache={cache.folder}")
    with redirect_stdout(io.StringIO()) as stdout:
        run_script("search", *arguments)
    assert [(row["start"], row["end"], round(row["score"], 5)) for row in json.loads(stdout.getvalue())] == found
    assert server.requests == []

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    said = []
    address = push_to_hub(folder, "someone/tiny", private=True, licence="mit", log=said.append)
    assert address == f"{server.url}/someone/tiny/commit/{COMMIT}"
    assert server.private == {"someone/tiny"}
    assert server.tokens == {"Bearer hf_secret"}
    again = calce_jax.load("hf:someone/tiny", yes=True, cache=cache)
    assert moments_of(again, sample) == found
    server.requests.clear()
    calce_jax.load("hf:someone/tiny", cache=cache)
    assert server.requests == []


@pytest.mark.slow
def test_what_is_made(server, tmp_path):
    asked = []
    folder = resolve_model(NAME, confirm=lambda _: not asked.append("asked"), log=asked.append)
    assert asked[1] == "asked"
    assert folder == tmp_path / "models" / NAME
    assert is_model_folder(folder)
    assert asked[0].startswith(
        f"{NAME}: CALCE by its authors, both stages, trained on QVHighlights\n  download  about "
    )
    assert "Google Drive, google-bert/bert-base-uncased, Salesforce/blip2-flan-t5-xl, google/flan-t5-xl" in asked[0]
    assert "Apache-2.0" in asked[0]
    assert not [path for path in server.content_requests() if path.endswith(".bin")]
    run = read_config(folder / "stage2")
    assert run.weights.base == str(folder / "base.safetensors")
    # It is here: neither a question nor a request.
    server.requests.clear()
    assert resolve_model(NAME) == folder
    assert server.requests == []
    # The folder holds no path of this machine.
    for name, content in contents(folder).items():
        assert str(tmp_path).encode() not in content, name
    # The weights are those that were published.
    made, packaged = load_file(folder / "base.safetensors"), load_file(packaged_path(TINY_BASE))
    for name in set(made) - {"query_proj/kernel", "query_proj/bias"}:  # no BLIP-2 has them
        np.testing.assert_array_equal(made[name], packaged[name], err_msg=name)
    for stage in (1, 2):
        trained, published = load_file(folder / f"stage{stage}/trained.safetensors"), trained_weights(stage).trained
        assert set(published) < set(trained)
        for name, weight in published.items():
            np.testing.assert_array_equal(trained[name], weight.read(), err_msg=name)


@pytest.mark.release
def test_downloads_are_kept_if_asked(server, tmp_path):
    install(keep_downloads=True)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {NAME, f"{NAME}.downloads"}
    shutil.rmtree(tmp_path / "models" / NAME)
    server.requests.clear()
    install()
    assert [path for path in server.content_requests() if "resolve" in path] == []
    assert {path.name for path in (tmp_path / "models").iterdir()} == {NAME}


def test_nothing_is_downloaded_without_an_agreement(server, tmp_path):
    with pytest.raises(ModelNotHereError, match=r"calce-qvh is not in .*: about .* would be downloaded") as told:
        calce_jax.load(NAME)
    assert 'calce_jax.load("calce-qvh", yes=True), or --yes' in one_line(told.value)
    assert "Terms: The weights" in str(told.value)
    with pytest.raises(ModelNotHereError, match="calce-qvh was not downloaded; agree") as told:
        resolve_model(NAME, confirm=lambda _: False)
    one_line(told.value)
    assert server.requests == []
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_an_interrupted_download_is_continued(server, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    server.truncate_at["blip2-flan-t5-xl/resolve/" + COMMIT + "/model.safetensors"] = 70_000
    with pytest.raises(NoNetworkError, match="to continue") as told:
        install()
    one_line(told.value)
    partial = tmp_path / "models" / f"{NAME}.downloads/blip2/model.safetensors.part"
    assert partial.stat().st_size == 70_000
    assert not (tmp_path / "models" / NAME).exists()
    server.truncate_at.clear()
    server.requests.clear()
    install()
    wanted = {path.split("/")[-1]: part for path, part in server.requests if "/resolve/" in path}
    assert wanted["model.safetensors"] == "bytes=70000-"
    assert not [path for path in wanted if "vocab" in path]  # BERT is complete


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param("", marks=pytest.mark.release),
        pytest.param("base.safetensors", marks=pytest.mark.release),
        "stage1/config.json",
    ],
)
def test_an_interrupted_conversion_is_continued(server, tmp_path, monkeypatch, kept):
    """Whatever was complete is not made again, and what was not is not taken for complete."""
    interrupted = {"": "write_safetensors", "base.safetensors": "write_stage", "stage1/config.json": "write_stage"}[
        kept
    ]
    original, part = getattr(conversion, interrupted), tmp_path / "models" / f"{NAME}.part"

    def die(*arguments, **more):
        if kept == "stage1/config.json" and not (part / kept).exists():
            return original(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion, interrupted, die)
        with pytest.raises(KeyboardInterrupt):
            install()
    assert not (tmp_path / "models" / NAME).exists()
    times = {name: (part / name).stat().st_mtime_ns for name in [kept] if name}
    (part / "base.safetensors.1234.part").write_text("of a process that was killed")
    server.requests.clear()
    folder = install()
    assert [path for path in server.content_requests() if "/resolve/" in path] == []
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    assert is_model_folder(folder)
    assert not list(folder.rglob("*.part"))


@pytest.mark.release
def test_an_interruption_after_the_downloads_were_removed(server, tmp_path):
    folder = install()
    folder.rename(model_paths(NAME).part)
    server.requests.clear()
    offers = []
    assert resolve_model(NAME, confirm=lambda offer: not offers.append(offer), log=lambda _: None) == folder
    assert (offers[0].download_bytes, offers[0].disk_bytes) == (0, 0)
    assert server.requests == []
    (folder / "stage2/config.json").unlink()
    with pytest.raises(InstallError, match=r"calce-qvh lacks files of the model; delete it, with `calce models --rem"):
        install()


def test_another_content_than_published(server, tmp_path):
    server.advertised["model.safetensors"] = server.repos["google-bert/bert-base-uncased"]["model.safetensors"][::-1]
    with pytest.raises(FetchError, match=r"bert.*model.safetensors: its sha256 is .*, not the published") as told:
        install()
    one_line(told.value)
    assert not (tmp_path / "models" / NAME).exists()


def test_a_damaged_checkpoint(server, tmp_path):
    part = sources.MODELS[NAME].downloads["calce"].parts[0]
    name, content = server.drive[part.id]
    server.drive[part.id] = (name, content[: len(content) // 2])
    with pytest.raises(FetchError, match=r"stage1\.pth: a damaged archive") as told:
        install()
    one_line(told.value)
    # It is the first to be fetched, since Google Drive refuses most often.
    assert not [path for path in server.content_requests() if "/resolve/" in path]


def test_no_room(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1000))
    with pytest.raises(
        InstallError, match=r"calce-qvh needs about .* MB in .*/models, and 1 kB are free; make room"
    ) as told:
        install()
    one_line(told.value)
    assert server.requests == []


@pytest.mark.slow
def test_a_disk_that_is_full_in_mid_conversion(server, monkeypatch):
    def full(path, *_):
        raise write_error(path, OSError(errno.ENOSPC, "No space left on device"))

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_stage", full)
        expected = r"^calce-qvh: cannot write .*stage1 \(No space left on device\); make room there, or choose another "
        with pytest.raises(InstallError, match=expected) as told:
            install()
    one_line(told.value)
    assert is_model_folder(install())


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InstallError) as told:
        install(models_dir=tmp_path / "file/models")
    assert "file" in one_line(told.value)


def test_no_network(server, monkeypatch):
    monkeypatch.setattr(server, "url", "http://127.0.0.1:9")
    with pytest.raises(NoNetworkError, match="cannot be reached") as told:
        install()
    one_line(told.value)
    set_endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(NoNetworkError, match=r"127\.0\.0\.1:9/someone/tiny cannot be reached") as told:
        install("hf:someone/tiny")
    one_line(told.value)


def test_without_pytorch_nothing_is_asked(server, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torch" else find(name, *more))
    with pytest.raises(InstallError, match=r"needs PyTorch; install the extra: pip install .*\[convert\]") as told:
        install()
    one_line(told.value)
    assert server.requests == []


@pytest.mark.release
def test_two_processes(server):
    with FileLock(model_paths(NAME).lock), pytest.raises(LockError, match="writes here; wait") as told:
        install()
    one_line(told.value)
    assert server.content_requests() == []
    # Another process made it while this one waited for the answer.
    folder = resolve_model(NAME, confirm=lambda _: is_model_folder(install()), log=lambda _: None)
    assert is_model_folder(folder)
    assert len(server.content_requests()) == len(set(server.content_requests()))


def test_names(server, tmp_path, monkeypatch):
    for name in ("hf:", "hf:owner", "hf:../../x", "hf:a/../b", "hf:a--b/c"):
        with pytest.raises(ModelNameError) as told:
            install(name)
        one_line(told.value)
    # A folder of that name goes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME / "stage1").mkdir(parents=True)
    assert install(NAME) == Path(NAME)
    (tmp_path / NAME / "stage1").rmdir()  # `calce fetch` may have made it
    with pytest.raises(ModelNotHereError, match="calce-qvh is not in"):
        resolve_model(NAME)
    monkeypatch.delenv("CALCE_MODELS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_models_dir() == Path("/data/calce/models")


PAPER_RUNS = {"calce-qvh": ("qvhighlights", 75, 150), "calce-charades": ("charades_sta", 60, 120)}


@pytest.mark.release
@pytest.mark.parametrize("name", PAPER_RUNS)
def test_the_runs_of_a_model_are_those_of_the_paper(server, tmp_path, monkeypatch, name):
    """At the size of the fetched BLIP-2, which is the tiny one here, with the paper's adapters."""
    run, *frames = PAPER_RUNS[name]
    model = replace(MODELS[name], download_bytes=10**6, disk_bytes=10**6)
    monkeypatch.setitem(sources.MODELS, name, model)
    serve(server, model, publish(tmp_path / "published", get_preset(f"{run},size=tiny").lora))
    folder = install(name)
    for stage, expected in enumerate(frames, 1):
        config = read_config(folder / f"stage{stage}")
        assert (config.stage, config.data.frames) == (stage, expected)
        differences = diff(to_dict(get_preset(f"{run},stage={stage},size=tiny")), to_dict(config))
        assert [line for line in differences if not line.startswith(PATH_FIELDS)] == []
    if name == "calce-qvh":  # its prompts have many lengths to compile
        sample = load_samples()[0]
        moments = calce_jax.load(name, cache=DiskCache(tmp_path / "cache")).search(sample.video, QUERY)
        assert moments.failures == []
