"""The web app: access to results, its port, and a real browser that uploads a video and searches it."""

import re
import socket
from pathlib import Path

import pytest

from calce_jax.search.samples import load_samples
from calce_jax.search.web.visitors import COOKIE, ResultStore, visitor_from_cookies
from tests.helpers.browser import open_browser
from tests.helpers.commands import run_script
from tests.helpers.video_files import write_clip
from tests.helpers.web_server import serving

# Gradio and its parts warn about each other's versions; an exception in a server's thread is a failure all the same.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")


def test_a_result_is_its_visitors_alone_and_goes(tmp_path):
    now = [0.0]
    results = ResultStore(tmp_path, retention_seconds=10.0, clock=lambda: now[0])
    name, folder = results.create("a")
    (folder / "index.html").write_text("found")
    (tmp_path / "secret").write_text("x")
    assert results.find(name, "index.html", "a") == folder / "index.html"
    for visitor, path in (("b", "index.html"), ("", "index.html"), ("a", "../secret"), ("a", "none"), ("a", "")):
        assert results.find(name, path, visitor) is None
    assert results.find("other", "index.html", "a") is None
    now[0] = 9.0
    results.remove_expired()
    assert folder.exists()
    now[0] = 10.0
    results.remove_expired()
    assert not folder.exists()
    assert results.find(name, "index.html", "a") is None


def test_the_cookie_is_read_among_others():
    assert visitor_from_cookies(f"theme=dark; {COOKIE}=abc") == "abc"
    assert visitor_from_cookies("") == ""


def test_a_port_in_use_is_told_in_one_line():
    pytest.importorskip("gradio", reason="gradio is absent: pip install 'calce_jax[web]'")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as told:
            run_script("web", f"--port={port}")
    assert re.fullmatch(rf"Error: port {port} of 127\.0\.0\.1: .*; choose another with --port", str(told.value))


def test_samples_have_captions_and_queries():
    samples = load_samples()
    assert len({sample.name for sample in samples}) == len(samples) > 1
    for sample in samples:
        assert sample.video.is_file()
        assert sample.video.with_suffix(".srt").is_file()
        assert all(sample.queries)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("web"), max_visitor_uploads=6) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with open_browser() as chromium:
        yield chromium


def opened(browser, address):
    page = browser.new_context(viewport={"width": 1100, "height": 900}).new_page()
    page.set_default_timeout(240_000)
    page.goto(address)
    page.locator("#search").wait_for()
    return page


def ask(page, query, video=None):
    if video is not None:
        page.locator("#upload input[type=file]").set_input_files(str(video))
        # Its name is shown already while it is being sent.
        page.locator("#upload .file-preview", has_text=video.name[:4]).first.wait_for()
    page.locator("#query textarea").fill(query)
    page.locator("#search").click()


@pytest.mark.slow
def test_upload_ask_look_and_be_told(address, browser, tmp_path):
    page = opened(browser, address)
    ask(page, "a blue square appears", write_clip(tmp_path / "mine.mp4", frames=20, rate=5))
    frame = page.frame_locator("#result iframe")
    frame.locator(".rankings .moment").first.wait_for()
    assert "mine.mp4" in frame.locator("h1").inner_text()
    frame.locator(".rankings .moment").first.click()
    assert frame.locator("video").evaluate("video => video.error") is None
    with page.expect_download() as download:
        frame.get_by_role("link", name="clip").first.click()
    assert Path(download.value.path()).stat().st_size > 100
    with page.expect_download() as download:
        page.get_by_role("link", name="moments.json").click()
    assert '"moments"' in Path(download.value.path()).read_text()

    # The upload is still there for another search.
    shown = page.locator("#result iframe").get_attribute("src")
    ask(page, "a red circle")
    page.wait_for_function("shown => document.querySelector('#result iframe').getAttribute('src') !== shown", arg=shown)
    assert "mine.mp4" in frame.locator("h1").inner_text()

    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    page.reload()
    ask(page, "a blue square appears", text)
    page.get_by_text("text.mp4: it is not a video").first.wait_for()
    page.reload()
    ask(page, "", write_clip(tmp_path / "mine.mp4", frames=20, rate=5))
    page.get_by_text("no query; describe in a sentence what to look for").first.wait_for()
    page.reload()
    ask(page, "a blue square", write_clip(tmp_path / "long.mp4", frames=40, rate=1))
    page.get_by_text("long.mp4: it lasts 0.7 minutes, the maximum is 0.5").first.wait_for()
    page.reload()
    bad = tmp_path / "bad.srt"
    bad.write_text("nonsense")
    page.locator("#captions input[type=file]").set_input_files(str(bad))
    page.get_by_text("bad").first.wait_for()
    ask(page, "a blue square", tmp_path / "mine.mp4")
    page.get_by_text("bad.srt, line 1: expected a number").first.wait_for()
    # Five videos and the captions are kept by now.
    page.reload()
    page.locator("#upload input[type=file]").set_input_files(str(tmp_path / "mine.mp4"))
    page.get_by_text("you have 6 uploads, the limit is 6").first.wait_for()


@pytest.mark.slow
def test_an_error_goes_with_the_next_search_and_two_searches_share_an_upload(address, browser, tmp_path):
    page = opened(browser, address)
    page.set_viewport_size({"width": 390, "height": 800})
    ask(page, "", write_clip(tmp_path / "phone.mp4", frames=20, rate=5))
    error = page.get_by_text("no query; describe in a sentence what to look for").first
    error.wait_for()
    frame = page.frame_locator("#result iframe")
    for query in ("a red circle", "a blue square"):
        ask(page, query)
        frame.locator("h2", has_text=query).first.wait_for()
        assert not error.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.context.close()


@pytest.mark.slow
def test_two_visitors_at_once_see_their_own_and_not_each_others(address, browser, tmp_path):
    pages = [opened(browser, address) for _ in range(2)]
    for number, page in enumerate(pages):
        ask(page, "a red circle", write_clip(tmp_path / f"visitor{number}.mp4", frames=15 + 5 * number, rate=5))
    found = []
    for number, page in enumerate(pages):
        page.frame_locator("#result iframe").locator(".rankings .moment").first.wait_for()
        assert f"visitor{number}.mp4" in page.frame_locator("#result iframe").locator("h1").inner_text()
        found.append(page.locator("#result iframe").get_attribute("src"))
    assert pages[0].request.get(address + found[0]).status == 200
    assert pages[0].request.get(address + found[1]).status == 404
    assert pages[1].request.get(address + found[0]).status == 404
    for path in ("/gradio_api/file=/etc/hostname", f"/gradio_api/file={tmp_path}/visitor0.mp4"):
        assert pages[0].request.get(address + path).status == 404


@pytest.mark.slow
def test_a_sample_brings_its_query(address, browser):
    page = opened(browser, address)
    page.locator("#sample input").click()
    page.get_by_role("option", name="ours").click()
    page.wait_for_function("document.querySelector('#query textarea').value === 'a red circle moves'")
    assert page.locator("#preview img").count() == 6
    page.locator("#search").click()
    page.frame_locator("#result iframe").locator(".rankings .moment").first.wait_for()


@pytest.mark.slow
def test_the_library_is_searched_and_its_folder_is_not_told(browser, tmp_path):
    with serving(tmp_path, library=True) as address:
        page = opened(browser, address)
        page.locator("#query textarea").fill("a red circle")
        page.locator("#sample input").click()
        page.get_by_role("option", name="all videos of the library").click()
        page.locator("#search").click()
        frame = page.frame_locator("#result iframe")
        frame.locator(".rankings .moment").first.wait_for()
        names = {name for name in ("first.mp4", "second.mp4") if name in frame.locator("body").inner_text()}
        assert names == {"first.mp4", "second.mp4"}
        with page.expect_download() as download:
            page.get_by_role("link", name="moments.json").click()
        assert str(tmp_path) not in Path(download.value.path()).read_text()
        # One that is damaged later is an error without a path.
        (tmp_path / "library.sqlite").write_bytes(b"no database" * 100)
        page.locator("#search").click()
        page.get_by_text("the library cannot be searched; its owner finds the reason in the log").first.wait_for()
        assert "library.sqlite" not in page.locator("body").inner_text()
