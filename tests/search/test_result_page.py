"""The page of a search in a real browser: it plays, keeps its place, and saves the moments that a person chose."""

import csv
import json
from pathlib import Path

import pytest

from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.results import clip_name, write_results
from calce_jax.search.segments import Segment
from calce_jax.search.video_result import QueryResult, UsedCaption, VideoResult
from tests.helpers.browser import open_browser
from tests.helpers.video_files import write_clip

QUERY = 'a "red" circle, moving'
NOTICE = "made for coloured shapes"


def result(video: Path, moments: list[tuple[float, float, float]]) -> VideoResult:
    windows = [ScoredWindow(*moment) for moment in moments]
    frames = [(second / 2, "full" if second % 2 else "dropped") for second in range(40)]
    captions = [UsedCaption(1.0, 2.0, "look at that", 0.7)]
    found = [
        QueryResult(query, {"stage 1": windows[:1], "stage 2": windows}, captions, frames, [Segment(0.0, 20.0)])
        for query in (QUERY, "=another")
    ]
    return VideoResult(video, 20.0, found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page")
    first, second = (write_clip(out / name, frames=200, rate=10, noise=True) for name in ("one.mp4", "two.mp4"))
    moments = [(2.0, 5.0, 0.9), (11.0, 14.5, 0.4), (15.0, 16.0, 0.2)]
    results = [result(first, moments), result(second, [(8.0, 9.0, 0.8)])]
    assert not write_results(out / "found", results, max_moments=5, clips=True, notice=NOTICE)
    return out / "found"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as chromium:
        yield chromium


@pytest.fixture
def page(browser, folder):
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto((folder / "index.html").as_uri())
    yield page
    assert errors == []
    context.close()


def second_of(page) -> float:
    return page.locator("video").evaluate("video => video.currentTime")


@pytest.mark.slow
def test_a_click_plays_a_moment_and_keeps_the_place(page):
    page.mouse.wheel(0, 250)
    page.wait_for_function("scrollY > 100")
    before = page.evaluate("scrollY")
    page.locator(".row .moment").nth(2).click()  # of one.mp4, after that of two.mp4
    page.wait_for_function("document.querySelector('video').currentTime >= 11")
    assert page.evaluate("scrollY") == before
    box = page.locator("video").bounding_box()
    assert box["y"] >= 0, "the player stays in sight"
    # It pauses at the end of the moment.
    page.wait_for_function(
        "document.querySelector('video').paused && document.querySelector('video').currentTime >= 14"
    )
    assert second_of(page) == pytest.approx(14.5, abs=0.6)


@pytest.mark.slow
def test_the_player_shows_the_video_of_the_moment(page):
    assert page.locator("video").get_attribute("poster").startswith("data:image/jpeg")
    page.locator(".row .moment").nth(1).click()
    page.wait_for_function("document.querySelector('video').currentTime >= 8")
    assert page.locator("video").get_attribute("src") == "videos/two.mp4"
    assert page.locator("#now-file").inner_text() == "two.mp4"
    page.keyboard.press("k")
    page.wait_for_function("document.querySelector('#now-file').innerText == 'one.mp4'")
    page.wait_for_function("document.querySelector('video').currentTime >= 2")


@pytest.mark.slow
def test_moments_are_dropped_adjusted_and_saved(page, tmp_path):
    rows = page.locator(".row")
    rows.nth(0).locator(".start").fill("0:02.5")
    rows.nth(0).locator(".start").press("Tab")
    rows.nth(0).locator(".end").press("ArrowDown")
    rows.nth(1).locator(".keep").uncheck()
    rows.nth(2).locator(".end").fill("9:99")
    rows.nth(2).locator(".end").press("Tab")
    assert "a moment begins before it ends" in page.locator("#message").inner_text()
    assert rows.nth(2).locator(".end").input_value() == "00:14.5"
    saved = {}
    for kind in ("csv", "json"):
        with page.expect_download() as download:
            page.locator(f"[data-format={kind}]").click()
        download.value.save_as(tmp_path / f"moments.{kind}")
        saved[kind] = (tmp_path / f"moments.{kind}").read_text()
    chosen = json.loads(saved["json"])
    assert [(m["video"], m["start"], m["end"]) for m in chosen if m["query"] == QUERY] == [
        ("one.mp4", 2.5, 4.9),
        ("one.mp4", 11, 14.5),
        ("one.mp4", 15, 16),
    ]
    assert page.locator("#message").inner_text() == "7 of 8 moments saved"
    table = list(csv.DictReader(saved["csv"].splitlines()))
    assert (table[0]["query"], table[0]["start_time"]) == (QUERY, "00:02.5")
    assert table[-1]["query"] == "'=another"


@pytest.mark.slow
def test_the_moment_is_set_from_the_player(page):
    page.locator(".row .moment").first.click()
    page.wait_for_function("document.querySelector('video').currentTime >= 3")
    page.keyboard.press("p")
    page.wait_for_function("document.querySelector('video').paused")
    page.keyboard.press("i")
    start = page.locator(".row .start").first.input_value()
    assert start == f"00:0{second_of(page):.1f}"


@pytest.mark.slow
def test_how_it_was_found_is_folded_away_and_times_are_a_players(page):
    assert page.locator(".notice").inner_text() == NOTICE
    assert not page.locator(".chart").first.is_visible()
    page.locator(".how > summary").click()
    assert page.locator(".chart").first.is_visible()
    assert "00:02.0" in page.locator(".result").first.get_attribute("title")
    assert page.locator(".row .thumbnail").first.evaluate("e => getComputedStyle(e).backgroundImage").startswith("url(")
    colours = {
        page.locator(selector).first.evaluate("e => getComputedStyle(e).backgroundColor")
        for selector in (".meter i", ".bars.stage-2 .first")
    }
    assert len(colours) == 2, "no colour for answers that mean nothing"


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1440])
def test_nothing_is_wider_than_the_window(width, theme, browser, folder):
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme).new_page()
    page.goto((folder / "index.html").as_uri())
    page.locator(".how > summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".row .moment").nth(3).click()
    box = page.locator(".screen").bounding_box()
    assert 0 <= box["y"] < 450
    page.context.close()


@pytest.mark.slow
def test_a_file_that_no_browser_plays_is_shown_by_its_thumbnails(browser, folder, tmp_path):
    found = tmp_path / "found"
    (found / "videos").mkdir(parents=True)
    (found / "index.html").write_bytes((folder / "index.html").read_bytes())
    (found / "videos/one.mp4").write_text("not a video")
    (found / "videos/two.mp4").write_bytes((folder / "videos/two.mp4").read_bytes())
    page = browser.new_page()
    page.goto((found / "index.html").as_uri())
    page.locator(".unplayable").wait_for()
    page.locator(".row .moment").first.click()
    assert page.locator("#now-time").inner_text() == "00:02.0"
    page.locator(".row .moment").nth(1).click()  # of the other video, which plays
    page.wait_for_function("document.querySelector('video').currentTime >= 8")
    assert not page.locator(".unplayable").is_visible()
    page.close()


@pytest.mark.slow
def test_a_video_without_pictures_is_played_all_the_same(browser, tmp_path):
    video = write_clip(tmp_path / "one.mp4", frames=50, rate=10)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no longer a video")
    results = [result(path, [(2.0, 4.0, 0.9)]) for path in (broken, video)]
    assert len(write_results(tmp_path / "found", results, max_moments=5)) == 1
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "found/index.html").as_uri())
    page.locator(".unplayable").wait_for()
    page.locator(".row .moment").nth(1).click()
    page.wait_for_function("document.querySelector('video').currentTime >= 2")
    assert errors == []
    page.close()


def test_names_of_clips():
    used: set[str] = set()
    names = [
        clip_name("holiday", query, 66.9, used)
        for query in ("A dog catches the red ball", "a dog catches the red car", "?!")
    ]
    assert names == [
        "holiday_00-01-06_a-dog-catches-the-red.mp4",
        "holiday_00-01-06_a-dog-catches-the-red-2.mp4",
        "holiday_00-01-06_moment.mp4",
    ]
    assert (
        clip_name("f", "Donaudampfschifffahrtsgesellschaft", 3700.0, used) == "f_01-01-40_donaudampfschifffahrtsge.mp4"
    )
