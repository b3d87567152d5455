"""The app's gate: which routes there are, for whom, and what a request for a function may hold."""

import asyncio
import json

import pytest

from tests.helpers.web_server import Stub, Visitor, beside_private_files, raw, serving

httpx = pytest.importorskip("httpx", reason="gradio is absent: pip install 'calce_jax[web]'")
gate = pytest.importorskip("calce_jax.search.web.gate", reason="gradio is absent: pip install 'calce_jax[web]'")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")

META = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with beside_private_files(tmp_path_factory.mktemp("web")) as world:
        yield world


@pytest.fixture
def visitor(world):
    made = Visitor(world.address)
    yield made
    made.client.close()


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("[" * 60_000, 400, "expected JSON"),
        ("[1]", 400, "expected a JSON object"),
        ("no", 400, "expected JSON"),
        ('{"data": "x", "fn_index": 0, "session_hash": "a"}', 400, "data: expected strings"),
        ('{"data": [], "fn_index": 1000, "session_hash": "a"}', 400, "fn_index"),
        ('{"data": [], "fn_index": -1, "session_hash": "a"}', 400, "fn_index"),
        ('{"data": [], "fn_index": "0", "session_hash": "a"}', 400, "fn_index"),
        ('{"data": [], "fn_index": true, "session_hash": "a"}', 400, "fn_index"),
        ('{"data": [""], "fn_index": 0}', 400, "session_hash"),
        ('{"data": [""], "fn_index": 0, "session_hash": "../a"}', 400, "session_hash"),
        ('{"data": ["' + "x" * 70_000 + '"]}', 413, "too large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_for_a_function_is_checked_and_bounded(visitor, body, status, message):
    answer = visitor.client.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert message in answer.text


def test_gradio_gets_only_strings_and_known_fields():
    call = {"data": ["a", None], "fn_index": 1, "session_hash": "x1", "trigger_id": 2}
    extra = {"event_data": {"path": "/x"}, "event_id": "e", "oauth_token": "t", "batched": True, "simple_format": True}
    assert json.loads(gate.check_function_call(json.dumps({**call, **extra}).encode(), {1: 2})) == call


def test_routes_that_the_page_does_not_use_are_not_there(world):
    private, canary = world.video, world.canary
    reading = [
        f"/gradio_api/file={private}",
        f"/gradio_api/file/{private}",
        f"/gradio_api/file={canary}/x",
        f"/file={private}",
        f"/file/{private}",
        f"/gradio_api/proxy={canary}/x",
        f"/proxy={canary}/x",
        "/gradio_api/stream/a/1/2/playlist.m3u8",
        "/gradio_api/stream/a/1/2/0.mp4",
        "/gradio_api/stream/a/1/2/playlist-file",
        f"/gradio_api/custom_component/a/client/component/..%2f..%2f{private}",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/call/search/1",
        "/gradio_api/heartbeat/abc123",
        "/gradio_api/queue/status",
        "/gradio_api/startup-events",
        "/gradio_api/deep_link?session_hash=abc123",
        "/gradio_api/runs",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/gradio_api/token",
        "/gradio_api/user",
        "/gradio_api/mcp/",
        "/gradio_api/profiling/traces",
        "/monitoring",
        "/monitoring/summary",
        "/login_check",
        "/logout",
        "/docs",
        "/openapi.json",
        "/pwa_icon",
        f"/svelte/../../../../../../../../..{private}",
        "/nothing",
    ]
    climbing = [
        f"/{folder}/{up}{private}" for folder in ("static", "assets") for up in ("../" * 20, "%2e%2e/" * 20, "/")
    ]
    climbing += ["/static/../gradio_api/info", "/assets/%2e%2e/gradio_api/info", "//gradio_api/info"]
    for path in [*reading, *climbing]:
        for method in ("GET", "HEAD"):
            status, text = raw(world.address, path, method)
            assert status in (403, 404, 405), path
            assert str(world.folder).encode() not in text
    writing = ["run/search", "api/search", "call/search", "call/v2/search", "component_server", "component_server/"]
    writing += ["process_recording", "vibe-edit", "reset", "cancel", "stream/abc123", "login", "undo-vibe-edit"]
    for path in [*(f"/gradio_api/{path}" for path in writing), "/login", "/config", "/"]:
        answer = httpx.post(world.address + path, json={"data": [{"path": str(private), "meta": META}]})
        assert answer.status_code == 404, path
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert raw(world.address, "/", method)[0] == 404
    assert world.fetched == []


def test_a_saved_state_cannot_be_named(visitor, world):
    saved = visitor.client.get("/config", params={"deep_link": f"../../../../{world.video}"})
    assert "deep_link_state" not in saved.json()
    assert raw(world.address, f"/?deep_link={world.video}")[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("localhost", "LOCALHOST", "localhost.", "127.0.0.1", "[::1]", "allowed.example")),
        *((name, 421) for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.2")),
        *(
            (name, 421)
            for name in (
                "",
                "[",
                "evil.example@localhost",
                "localhost/",
                "localhost?",
                "localhost@evil.example",
                "[fe80::1]",
            )
        ),
    ],
)
def test_only_names_that_the_app_is_served_under_are_answered(named, host, status):
    for port in ("", ":7860"):
        assert raw(named, "/robots.txt", Host=host + port)[0] == status


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("named"), Stub(), names=("Allowed.example",)) as address:
        yield address


@pytest.mark.parametrize(
    ("origin", "status"), [("http://localhost:1", 200), ("http://evil.example", 421), ("null", 421), ("http://[", 421)]
)
def test_a_page_of_another_name_may_not_ask(world, origin, status):
    assert raw(world.address, "/robots.txt", Origin=origin)[0] == status


@pytest.mark.slow
def test_all_addresses_are_answered_where_all_are_listened_on():
    reached = []

    async def app(scope, receive, send):
        reached.append(scope["path"])

    async def ask(listens, host):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
        await gate.Gate(app, {}, listens)(scope, None, send)
        return not sent

    def answered(listens, host):
        return asyncio.run(ask(listens, host))

    for listens in ("0.0.0.0", "::"):
        assert answered(listens, "192.168.1.2:7860")
        assert answered(listens, "[fe80::1]:7860")
        assert answered(listens, "localhost")
        assert not answered(listens, "evil.example")
        assert not answered(listens, "1.evil.example")
    assert answered("192.168.1.2", "192.168.1.2:7860")
    assert not answered("192.168.1.2", "192.168.1.3:7860")
    assert len(reached) == 7
