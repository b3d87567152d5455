"""The app's protocol, spoken by a program: nothing is read but the visitor's own uploads."""

import http.client
import json
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from calce_jax.search.web.visitors import COOKIE
from tests.helpers.video_files import write_clip
from tests.helpers.web_server import SECRET, Stub, Visitor, World, beside_private_files, raw, serving

httpx = pytest.importorskip("httpx", reason="gradio is absent: pip install 'calce_jax[web]'")
uploads = pytest.importorskip("calce_jax.search.web.uploads", reason="gradio is absent: pip install 'calce_jax[web]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")

META = {"_type": "gradio.FileData"}
INTERNAL_ERROR = "the search failed because of an error in the app; its log has the reason"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with beside_private_files(tmp_path_factory.mktemp("web")) as world:
        yield world


@pytest.fixture
def visitor(world):
    made = Visitor(world.address)
    yield made
    made.client.close()


@pytest.fixture
def other(world):
    made = Visitor(world.address)
    yield made
    made.client.close()


@pytest.fixture
def mine(tmp_path):
    return write_clip(tmp_path / "mine.mp4", frames=20, rate=5)


def contents(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.slow
def test_two_searches_of_one_upload(visitor, other, mine, world):
    upload = visitor.uploaded(mine)
    first = visitor.found(upload, "", None, "a red circle")
    second = visitor.found(upload, "", None, "a blue square\na red circle")
    for found in (first, second):
        assert visitor.client.get(f"{found}/videos/mine.mp4").content == mine.read_bytes()
        entries = visitor.client.get(f"{found}/moments.json").json()
        assert [entry["video"] for entry in entries] == ["mine.mp4"]
        folder = world.folder / "results" / found.rpartition("/")[2]
        told = [path for path in folder.rglob("*") if path.is_file()]
        assert told
        assert not [path for path in told if str(world.folder).encode() in path.read_bytes()]
        for path in told:
            address = f"{found}/{path.relative_to(folder)}"
            assert visitor.client.get(address).status_code == 200
            assert other.client.get(address).status_code == 404
    # The disk holds the video once.
    assert len({path.stat().st_ino for path in world.folder.rglob("mine.mp4")}) == 1


def test_captions_and_samples(visitor, mine, tmp_path):
    srt = tmp_path / "said.srt"
    srt.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    assert visitor.found(visitor.uploaded(mine), visitor.uploaded(srt), None, "a red circle")
    vtt = tmp_path / "said.vtt"
    vtt.write_text("WEBVTT\n\n00:00.000 --> 00:01.000\nhello\n")
    assert visitor.found(visitor.uploaded(mine), visitor.uploaded(vtt), None, "a red circle")
    found = visitor.found("", None, "ours", "a red circle moves")
    assert visitor.client.get(f"{found}/moments.json").json()[0]["video"] == "ours.mp4"


def attacks(world: World, other: Visitor, theirs: Path, own: str) -> list[Any]:
    """Return what a field of a request may hold to reach a file that is not its visitor's, or an address."""
    upload = other.uploaded(theirs)
    [stored] = (world.folder / "uploads" / upload).iterdir()
    link = world.folder / "uploads" / own / "link.mp4"
    link.symlink_to(world.video)
    inside = world.folder / "uploads" / own
    paths = [
        str(world.video),
        str(world.srt),
        os.path.relpath(world.video),
        f"{inside}/{os.path.relpath(world.video, inside)}",
        f"{own}/{os.path.relpath(world.video, inside)}",
        f"../../{world.video.name}",
        str(link),
        f"{own}/link.mp4",
        str(stored),
        stored.name,
        upload,
        f"{upload}/{stored.name}",
        f"{own}/../{upload}",
        f"file://{world.video}",
        f"{world.canary}/video.mp4",
        f"/gradio_api/file={world.video}",
        f"/gradio_api/proxy={world.canary}/video.mp4",
        "\0",
        "C:\\private.mp4",
    ]
    objects = [
        *({"path": path, "meta": META} for path in paths),
        {"path": str(world.video), "meta": META, "is_stream": True},
        {"path": str(world.video), "orig_name": "mine.mp4"},
        {"path": own, "url": f"{world.canary}/video.mp4", "meta": META},
        {"path": own, "url": f"file://{world.video}", "meta": META},
        {"url": f"{world.canary}/video.mp4", "meta": META},
        [{"path": str(world.video), "meta": META}],
        {"value": {"path": str(world.video), "meta": META}},
        {"deep": [{"deeper": {"path": str(world.srt), "meta": META}}]},
        {"video": {"path": str(world.video), "meta": META}, "subtitles": None},
        3,
        True,
    ]
    return [*paths, *objects]


@pytest.mark.slow
def test_nothing_but_ones_own_uploads_is_read(visitor, other, mine, tmp_path, world):
    theirs = write_clip(tmp_path / "theirs.mp4", frames=22, rate=5, noise=True)
    own, private = visitor.uploaded(mine), {world.video.read_bytes(), world.srt.read_bytes()}
    payloads = attacks(world, other, theirs, own)
    before = sorted(world.folder.rglob("*"))
    said = []
    for payload in payloads:
        for data in ([payload, None, None, "q"], [own, payload, None, "q"], ["", "", payload, "q"]):
            said.append((payload, data, visitor.ask(data)))
        if not isinstance(payload, str):  # a text in the last field is a query
            said.append((payload, "query", visitor.ask([own, "", None, payload])))
    for payload, data, answer in said:
        assert "/found/" not in answer, (payload, data)
        assert SECRET not in answer, (payload, data)
        # A text that is no name of a sample is repeated to whoever sent it.
        assert str(world.folder) not in answer.replace(str(payload), ""), (payload, data)
    assert world.fetched == []
    assert world.video.is_file()
    assert world.srt.is_file()
    assert not private & contents(world.folder)
    # Not even a copy for a while: Gradio's own folder of copies and the results are as they were.
    assert sorted(world.folder.rglob("*")) == before
    (world.folder / "uploads" / own / "link.mp4").unlink()
    # The other visitor still has what was asked for.
    assert other.found(other.uploaded(theirs), "", None, "q")


def test_no_function_of_the_form_takes_a_file(visitor, world):
    private = {"path": str(world.video), "meta": META}
    for function in [*visitor.functions, -1, 1000]:
        for data in ([private], [private] * 4, [str(world.video)], [str(world.video)] * 4, [], [None] * 9):
            answer = visitor.ask(data, function, event_data=private)
            assert "/found/" not in answer, (function, data)
            assert str(world.folder) not in answer
    assert not {world.video.read_bytes()} & contents(world.folder)


def test_messages_name_no_folder_of_the_server(visitor, mine, tmp_path, world):
    upload = visitor.uploaded(mine)
    bad = tmp_path / "bad.srt"
    bad.write_bytes(b"nonsense\n")
    latin = tmp_path / "latin.srt"
    latin.write_bytes(b"1\n00:00:00,000 --> 00:00:01,000\n\xe9\n")
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    for data, told in {
        (upload, visitor.uploaded(bad), None, "q"): '"bad.srt, line 1: expected a number',
        (upload, visitor.uploaded(latin), None, "q"): '"latin.srt: not UTF-8 at byte',
        (upload, "", None, "crash"): INTERNAL_ERROR,
        (upload, "", None, "disk"): INTERNAL_ERROR,
        (upload, "", None, "damaged"): '"mine.mp4: it is damaged; fetch it again"',
        ("", "", "ours", "damaged"): '"ours.mp4: it is damaged; fetch it again"',
        (visitor.uploaded(text), "", None, "q"): '"text.mp4: it is not a video',
        (upload, upload, None, "q"): '"mine.mp4: expected .srt, .vtt; upload it in the other field"',
        (None, None, None, "q"): "no video; upload one",
        (
            "gone",
            "",
            "ours",
            "q",
        ): "no such upload (files are deleted after 60 minutes); upload",
        (upload, "gone", None, "q"): "no such upload",
        (upload, "", None, "\n".join("q" * 21)): "21 queries, the maximum is 20",
    }.items():
        said = visitor.ask(data)
        assert told in json.loads(json.dumps(said)).replace('\\"', '"'), (data, said)
        assert str(world.folder) not in said
        assert str(world.folder.parent) not in said
    # A search that failed leaves nothing behind.
    assert not [p for p in (world.folder / "results").glob("*/source/text.mp4")]


@pytest.mark.parametrize("name", ["../../../../up.mp4", "/etc/up.mp4", "..\\up.mp4", "C:\\x\\up.mp4", "up.mp4"])
def test_an_uploads_name_is_only_a_name(visitor, mine, world, name):
    [upload] = visitor.upload(name, mine.read_bytes()).json()
    assert [path.name for path in (world.folder / "uploads" / upload).iterdir()] == ["up.mp4"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("..", "upload"),
        ("", "upload"),
        (".mp4", "mp4"),
        ("a\0b\n.mp4", "a_b_.mp4"),
        ("<b>.mp4", "_b_.mp4"),
        ("é" * 300 + ".MP4", "é" * 50 + ".MP4"),
        ("x.m/p4", "p4"),
    ],
)
def test_names_are_made_safe(name, safe):
    assert uploads.safe_name(name) == safe


def test_uploads_are_refused_with_a_reason(world, visitor, mine):
    nobody = httpx.Client(base_url=world.address)
    form = {"files": ("mine.mp4", mine.read_bytes())}
    assert (answer := nobody.post("/gradio_api/upload", files=form)).status_code == 403
    assert "cookie" in answer.text
    for name, content, status, told in (
        ("page.html", b"<p>", 415, "page.html: neither a video nor captions"),
        ("mine", b"x", 415, "neither a video"),
        ("big.mp4", bytes(1_100_000), 413, "the file is larger than 1 MB"),
    ):
        answer = visitor.upload(name, content)
        assert (answer.status_code, told in answer.text) == (status, True), answer.text
    two = [("files", ("a.mp4", b"x")), ("files", ("b.mp4", b"x"))]
    assert visitor.client.post("/gradio_api/upload", files=two).status_code == 400
    assert visitor.client.post("/gradio_api/upload", json={"path": "/etc/hostname"}).status_code == 400
    streamed = visitor.client.post("/gradio_api/upload", content=iter([b"x"]))
    assert streamed.status_code == 411
    assert not list((world.folder / "uploads").rglob("*.html"))
    nobody.close()


def test_a_cookie_that_is_no_text_is_nobodys(visitor, mine, world):
    found = visitor.found(visitor.uploaded(mine), "", None, "q")
    for cookie in ("calce_visitor=\xe9", "a/b=1", "calce_visitor", "=;;", "calce_visitor="):
        assert raw(world.address, f"{found}/index.html", Cookie=cookie)[0] == 404


def test_a_visitor_without_a_cookie_is_told(visitor, mine):
    upload = visitor.uploaded(mine)
    visitor.client.cookies.clear()
    assert "this page needs a cookie" in visitor.ask([upload, "", None, "q"])


@pytest.mark.slow
def test_the_progress_of_an_upload_ends(visitor):
    with visitor.client.stream("GET", "/gradio_api/upload_progress", params={"upload_id": "none"}) as stream:
        assert [line for line in stream.iter_lines() if line] == ['data: {"msg": "done"}']


PART = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.mp4"\r\n\r\nvideo'
END = b"\r\n--b--\r\n"


def begun(address: str, visitor: Visitor) -> http.client.HTTPConnection:
    """Send an upload except for its end."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.putrequest("POST", "/gradio_api/upload?upload_id=u1")
    connection.putheader("content-type", "multipart/form-data; boundary=b")
    connection.putheader("content-length", str(len(PART + END)))
    connection.putheader("cookie", f"{COOKIE}={visitor.client.cookies[COOKIE]}")
    connection.endheaders(PART)
    return connection


def test_the_progress_of_an_upload_is_told(visitor, world):
    connection = begun(world.address, visitor)
    with visitor.client.stream("GET", "/gradio_api/upload_progress", params={"upload_id": "u1"}) as stream:
        lines = (line for line in stream.iter_lines() if line)
        update = {"msg": "update", "orig_name": "a.mp4", "chunk_size": len(PART)}
        assert json.loads(next(lines).removeprefix("data: ")) == update
        connection.send(END)
        assert json.loads(list(lines)[-1].removeprefix("data: ")) == {"msg": "done"}
    assert len(json.loads(connection.getresponse().read())) == 1
    connection.close()


@pytest.mark.slow
def test_an_upload_that_breaks_off_leaves_nothing(tmp_path):
    with serving(tmp_path, Stub(), max_visitor_uploads=1) as address:
        visitor = Visitor(address)
        connection = begun(address, visitor)
        # Progress is told once the upload has its place: one sent meanwhile could have taken the only place before it.
        with visitor.client.stream("GET", "/gradio_api/upload_progress", params={"upload_id": "u1"}) as stream:
            assert "update" in next(line for line in stream.iter_lines() if line)
        assert visitor.upload("b.html", b"x").status_code == 413
        connection.close()
        deadline = time.monotonic() + 30
        # Refused in any case: 413 without room, 415 with it.
        while (code := visitor.upload("b.html", b"x").status_code) == 413 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert code == 415
        assert not list((tmp_path / "app").glob("uploads/*"))
        visitor.client.close()


@pytest.mark.slow
def test_what_a_visitor_keeps_is_bounded(tmp_path):
    clip = write_clip(tmp_path / "noise.mp4", frames=20, rate=5, noise=True)
    size = clip.stat().st_size / 1e6
    with serving(tmp_path / "web", Stub(), max_visitor_uploads=2, max_visitor_megabytes=3.5 * size) as address:
        one, two = Visitor(address), Visitor(address)
        uploads = [one.uploaded(clip) for _ in range(2)]
        refused = one.upload("third.mp4", clip.read_bytes())
        assert refused.status_code == 413
        assert (
            "you have 2 uploads, the limit is 2; search those, or try again later; files are deleted after 60 minutes"
            in refused.text
        )
        assert two.uploaded(clip)
        # The clips of a result count, the video in it does not count again.
        said = [one.ask([uploads[0], "", None, "q\n" * 5]) for _ in range(2)]
        assert any("your uploads and results would take" in answer for answer in said)
        results = tmp_path / "web" / "app" / "results"
        assert len(list(results.iterdir())) == sum("/found/" in answer for answer in said)
        one.client.close()
        two.client.close()


@pytest.mark.slow
def test_what_all_visitors_keep_is_bounded(tmp_path):
    clip = write_clip(tmp_path / "noise.mp4", frames=20, rate=5, noise=True)
    size = clip.stat().st_size / 1e6
    with serving(tmp_path / "web", Stub(), max_total_megabytes=1.5 * size, max_visitor_megabytes=1.2 * size) as address:
        one, two = Visitor(address), Visitor(address)
        assert one.uploaded(clip)
        own, other = (visitor.upload("noise.mp4", clip.read_bytes()) for visitor in (one, two))
        assert "your uploads and results would take" in own.text
        assert "the disk space of this app is used up" in other.text
        one.client.close()
        two.client.close()
