"""Fetching, against a local server that does as the hub and Google Drive do."""

import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections import namedtuple
from hashlib import sha256
from pathlib import Path

import huggingface_hub
import pytest

from calce_jax.datasets.download import fetch
from calce_jax.datasets.fetched_files import RECORD_FILE, FetchError, NoNetworkError
from calce_jax.datasets.hub_download import BoundedFile
from calce_jax.datasets.sources import PUBLICATIONS, DriveFile, DriveFolder, HubRepo, Publication
from tests.helpers.published_server import COMMIT, FakeHandler, lead_drive_to, run_server

ROOT = Path(__file__).parents[2]
WEIGHTS = bytes(range(256)) * 400
REPO = HubRepo("someone/model", ("config.json", "*.safetensors"), ("merges.txt",))
MODEL = {"config.json": b'{"size": 1}', "a.safetensors": WEIGHTS, "b.safetensors": WEIGHTS[::-1], "model.bin": b"old"}
# Ids of Google Drive have at least 25 characters.
FIRST, SECOND, THIRD, FOURTH = (letter * 33 for letter in "abcd")


def quiet(_):
    """Say nothing."""


def published(*parts):
    return Publication("a thing", "free", parts, "use it")


def archive(**members):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, member in members.items():
            file.writestr(name, member)
    return content.getvalue()


@pytest.fixture
def server(monkeypatch):
    """A server that stands in for the hub, and to which calls of Google Drive are led; without waiting to try again."""
    with run_server() as served:
        lead_drive_to(served, monkeypatch)
        yield served


@pytest.fixture
def hub(server):
    server.repos["someone/model"] = dict(MODEL)
    return server


def there(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def line(faults):
    (fault,) = map(str, faults)
    assert "\n" not in fault
    return fault


def test_a_model_is_fetched_once_and_recorded(hub, tmp_path):
    files, faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)
    assert faults == []
    found = there(tmp_path)
    record = json.loads(found.pop(RECORD_FILE))
    assert found == {name: MODEL[name] for name in ("config.json", "a.safetensors", "b.safetensors")}
    assert [(row["file"], row["sha256"], row["checked"]) for row in record] == [
        ("a.safetensors", sha256(WEIGHTS).hexdigest(), "sha256"),
        ("b.safetensors", sha256(WEIGHTS[::-1]).hexdigest(), "sha256"),
        ("config.json", sha256(MODEL["config.json"]).hexdigest(), "git"),
    ]
    assert {row["source"] for row in record} == {f"someone/model@{COMMIT}"}
    assert len(hub.content_requests()) == 3

    said = []
    again, _ = fetch(published(REPO), tmp_path, endpoint=hub.url, log=said.append)
    assert again == files
    assert len(hub.content_requests()) == 3
    assert f"sha256 {sha256(WEIGHTS).hexdigest()}" in said[1]
    (tmp_path / "a.safetensors").write_bytes(WEIGHTS[:-1] + b"x")
    fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)
    assert there(tmp_path)["a.safetensors"] == WEIGHTS
    assert len(hub.content_requests()) == 4


def test_a_cut_connection_is_gone_on_with_by_the_next_run(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is in an unfinished one is lost
    hub.truncate_at["/a.safetensors"] = 70_000
    expected = r"someone/model cannot be reached \(.*\); .*, and run the same command again to continue"
    with pytest.raises(NoNetworkError, match=expected) as told:
        fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)
    assert "\n" not in str(told.value)
    assert there(tmp_path)["a.safetensors.part"] == WEIGHTS[:70_000]
    del hub.truncate_at["/a.safetensors"]
    hub.requests.clear()
    assert fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)[1] == []
    assert [wanted for path, wanted in hub.requests if path.endswith("a.safetensors")] == ["bytes=70000-"]
    assert there(tmp_path)["a.safetensors"] == WEIGHTS
    assert not list(tmp_path.glob("*.part"))


def test_another_content_than_promised_is_not_kept(hub, tmp_path):
    hub.advertised["a.safetensors"] = WEIGHTS[::-1]
    files, faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)
    expected = f"its sha256 is {sha256(WEIGHTS).hexdigest()}, not the published {sha256(WEIGHTS[::-1]).hexdigest()}"
    assert f"/a.safetensors: {expected}: damaged in transfer, or changed there; run the same" in line(faults)
    assert [file.file for file in files] == ["config.json"]
    assert set(there(tmp_path)) == {"config.json", RECORD_FILE}
    hub.advertised = {"config.json": b'{"size": 2}'}
    (tmp_path / "config.json").unlink()
    assert "its git hash is" in line(fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)[1])


def test_not_one_byte_more_than_published_is_written(tmp_path):
    path = tmp_path / "a.safetensors.part"
    with BoundedFile(path, 5, "https://example.org/a.safetensors") as file:
        assert (file.write(b"123"), file.write(b"45")) == (3, 2)
        with pytest.raises(FetchError, match="sends more than the published 5 bytes"):
            file.write(b"6")
    assert not path.exists()


def test_more_bytes_than_published_are_not_written(hub, tmp_path, monkeypatch):
    """As from a mirror, or a network that answers with its own files."""
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.advertised["a.safetensors"] = WEIGHTS[:3000]
    files, faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)
    expected = r"a.safetensors: the server sends more than the published 3000 bytes; try again later"
    assert re.search(expected, line(faults))
    assert there(tmp_path).keys() == {RECORD_FILE, *(file.file for file in files)}


@pytest.mark.parametrize("answer", [b"<html>Log in to this network</html>", b"[]", b"{}", b"[" * 100_000])
def test_the_page_of_a_captive_portal_is_no_traceback(hub, tmp_path, monkeypatch, answer):
    monkeypatch.setattr(FakeHandler, "do_GET", lambda self: self.respond(answer, "text/html"))
    publication = published(REPO, DriveFile(FIRST, ""), DriveFolder(SECOND, "folder"))
    faults = list(map(str, fetch(publication, tmp_path, endpoint=hub.url, log=quiet)[1]))
    assert len(faults) == 3
    assert re.search(
        r"someone/model: the answer is not that of the hub .*; open it in a browser|has no config", faults[0]
    )
    assert all("drive.google.com" in fault and "browser" in fault for fault in faults[1:])
    assert not any("\n" in fault for fault in faults)


@pytest.mark.parametrize(("status", "remedy"), [(403, "open it in a browser, and put config"), (503, "try again")])
def test_a_refusal_costs_one_part(hub, tmp_path, status, remedy):
    hub.error_status["/api/models/closed/model"] = status
    closed = HubRepo("closed/model", ("config.json", "*.safetensors"))
    files, faults = fetch(published(closed, REPO), tmp_path, endpoint=hub.url, log=quiet)
    assert line(faults).startswith(f"{hub.url}/closed/model: the server answers {status}; {remedy}")
    assert len(files) == 3
    hub.error_status = {f"/someone/model/resolve/{COMMIT}/b": status}
    (tmp_path / "b.safetensors").unlink()
    faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)[1]
    assert line(faults).startswith(f"{hub.url}/someone/model: the server answers {status}; {remedy}")


def test_a_model_without_a_file_is_named(hub, tmp_path):
    del hub.repos["someone/model"]["config.json"]
    faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)[1]
    assert line(faults) == (
        f"{hub.url}/someone/model has no config.json; "
        f"open it in a browser, and put config.json, *.safetensors into {tmp_path}"
    )


def test_files_of_somebody_else_are_left_alone(hub, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)[1]
    assert f"{tmp_path}/config.json exists and is not from someone/model; choose another --out" in line(faults)
    assert there(tmp_path) == {"config.json": b"mine"}


def test_a_name_cannot_lead_out_of_the_folder(hub, tmp_path):
    hub.repos["someone/model"]["../x.safetensors"] = WEIGHTS
    faults = fetch(published(REPO), tmp_path / "out", endpoint=hub.url, log=quiet)[1]
    assert "../x.safetensors: a file of this name would be written outside" in line(faults)
    assert there(tmp_path) == {}


def test_no_room(hub, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    faults = fetch(published(REPO), tmp_path, endpoint=hub.url, log=quiet)[1]
    assert line(faults) == f"{tmp_path} needs 0.2 MB more and 0 kB are free; make room, or choose another --out"


def nobody():
    """Return an address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_no_network(server, tmp_path, monkeypatch):
    address = nobody()
    expected = rf"^{address}/someone/model cannot be reached \(.*\); check the network, or set HF_ENDPOINT to a mirror"
    with pytest.raises(NoNetworkError, match=expected):
        fetch(published(REPO), tmp_path, endpoint=address, log=quiet)
    monkeypatch.setattr(server, "url", address)
    expected = r"^https://drive\.google\.com/.* cannot be reached \(.*\); check the network"
    for part in (DriveFile(FIRST), DriveFile(FIRST, "a.pth"), DriveFolder(FOURTH, "notes")):
        with pytest.raises(NoNetworkError, match=expected) as told:
            fetch(published(part), tmp_path, log=quiet)
        assert "\n" not in str(told.value)
    assert there(tmp_path) == {}


class Trap:
    """Unpickling it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


CHECKPOINT = archive(**{"archive/data.pkl": pickle.dumps(Trap()), "archive/data/0": WEIGHTS})
DRIVE = published(DriveFile(FIRST, "stage1.pth"), DriveFile(SECOND), DriveFolder(FOURTH, "annotations"))


@pytest.fixture
def drive(server, monkeypatch, tmp_path):
    server.drive = {
        FIRST: ("checkpoint_best.pth", CHECKPOINT),
        SECOND: ("captions.dat", b"1\n00:00:01,000"),
        THIRD: ("train.json", b'[{"qid": 1}]'),
    }
    server.folders = {FOURTH: [THIRD]}
    monkeypatch.setattr(sys.modules["gdown.download"], "DEFAULT_COOKIES_FILE", str(tmp_path / "cookies"))
    monkeypatch.chdir(tmp_path)
    return server


def test_drive_is_fetched_once_and_nothing_is_unpickled(drive, tmp_path):
    out = tmp_path / "out"
    files, faults = fetch(DRIVE, out, log=quiet)
    assert faults == []
    checked = {file.file: file.checked for file in files}
    assert checked == {"stage1.pth": "archive", "captions.dat": "", "annotations/train.json": "json"}
    found = there(tmp_path)
    del found[f"out/{RECORD_FILE}"]
    contents = (content for _, content in drive.drive.values())
    assert found == dict(zip((f"out/{name}" for name in checked), contents, strict=True))
    assert not (tmp_path / "sprung").exists()

    drive.requests.clear()
    assert fetch(DRIVE, out, log=quiet) == (files, [])
    assert [path for path in drive.content_requests() if SECOND not in path] == []
    (out / "captions.dat").write_bytes(b"changed")
    changed = line(fetch(DRIVE, out, log=quiet)[1])
    assert "captions.dat: changed since it was fetched; remove it, and run" in changed


def test_drive_is_gone_on_with_by_the_next_run(drive, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["gdown.download"], "CHUNK_SIZE", 1000)  # what is in an unfinished one is lost
    part, out = published(DriveFile(FIRST, "stage1.pth")), tmp_path / "out"
    drive.truncate_at[FIRST] = 30_000
    with pytest.raises(NoNetworkError, match=r"cannot be reached \(.*\); check the network"):
        fetch(part, out, log=quiet)
    (kept,) = there(out).values()
    assert kept == CHECKPOINT[:30_000]
    drive.truncate_at.clear()
    drive.requests.clear()
    assert fetch(part, out, log=quiet)[1] == []
    assert "bytes=30000-" in [wanted for _, wanted in drive.requests]
    assert set(there(out)) == {"stage1.pth", RECORD_FILE}
    assert there(out)["stage1.pth"] == CHECKPOINT


QUOTA = '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>'
# One bit of a tensor is another.
FLIPPED = CHECKPOINT.replace(WEIGHTS[:300], bytes([1]) + WEIGHTS[1:300], 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (QUOTA, "Google Drive refuses (Failed to retrieve file url: Too many users have viewed"),
        ("<html>Sign in</html>", "Google Drive refuses (Failed to retrieve file url: Cannot retrieve the public link"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page instead of a file; open https://drive"),
        (b"", "empty; run the same command again"),
        (CHECKPOINT[:5000], "a damaged archive (File is not a zip file); run the same command again"),
        (FLIPPED, "a damaged archive"),
    ],
)
def test_what_drive_refuses_or_damages_is_not_kept(drive, tmp_path, content, message):
    drive.drive[FIRST] = ("a.pth", content)
    files, faults = fetch(DRIVE, tmp_path / "out", log=quiet)
    assert message in line(faults)
    if "refuses" in message:
        by_hand = f"open it in a browser, save it as {tmp_path}/out/stage1.pth, and run the same command again, which"
        assert by_hand in str(faults[0])
    assert [file.file for file in files] == ["captions.dat", "annotations/train.json"]
    assert not [name for name in there(tmp_path) if "stage1" in name]


def test_what_was_saved_by_hand_is_checked(drive, tmp_path):
    part = published(DriveFile(FIRST, "stage1.pth"))
    (tmp_path / "stage1.pth").write_bytes(CHECKPOINT)
    (file,), faults = fetch(part, tmp_path, log=quiet)
    assert (file.checked, faults, drive.requests) == ("archive", [], [])
    (tmp_path / "stage1.pth").write_bytes(FLIPPED)
    fault = line(fetch(part, tmp_path, log=quiet)[1])
    assert fault.startswith(f"{tmp_path}/stage1.pth: a damaged archive")
    assert fault.endswith("remove it, and run the same command again")


def test_an_empty_folder_is_named(drive, tmp_path):
    drive.folders[FOURTH] = []
    faults = fetch(published(DriveFolder(FOURTH, "annotations")), tmp_path, log=quiet)[1]
    assert line(faults) == (
        f"https://drive.google.com/drive/folders/{FOURTH} lists no file; "
        f"open it in a browser, and put its files into {tmp_path}/annotations"
    )


def test_everything_published_says_its_terms_and_what_to_do():
    assert {"blip2", "bert", "whisper", "calce-qvh", "calce-charades"} <= PUBLICATIONS.keys()
    for publication in PUBLICATIONS.values():
        assert publication.parts
        assert "http" in publication.licence
        assert "{" not in publication.next_steps.format(out="there")


@pytest.mark.slow
def test_command(tmp_path):
    """The command, in a home of its own, writes below --out alone, and tells the terms."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))} | {"HOME": str(home)}
    with run_server() as served:
        (part,) = PUBLICATIONS["bert"].parts
        assert isinstance(part, HubRepo)
        served.repos[part.repo] = {name: name.encode() for name in part.required}
        command = [sys.executable, str(ROOT / "launch/fetch.py"), "--what=bert", f"--out={tmp_path / 'out'}"]

        def run(endpoint):
            given = environment | {"HF_ENDPOINT": endpoint}
            return subprocess.run(
                command, capture_output=True, text=True, check=False, cwd=ROOT, env=given, timeout=300
            )

        done = run(served.url)
        assert done.returncode == 0, done.stderr
        assert "Terms: Apache-2.0; see the model card" in done.stdout
        assert f"4 files are in {tmp_path / 'out'}" in done.stdout
        assert {path.name for path in (tmp_path / "out").iterdir()} == {*part.required, RECORD_FILE}
        assert there(home) == {}
    address = nobody()
    done = run(address)
    assert done.returncode == 1
    assert done.stderr.strip().startswith(f"Error: {address}/{part.repo} cannot be reached (")
    assert len(done.stderr.strip().splitlines()) == 1
