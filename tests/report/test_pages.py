"""The page and the timeline: what is given is shown, once, escaped, in place, and without the network."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from calce_jax.report.page import (
    CaptionView,
    FrameView,
    MomentView,
    QueryView,
    StageView,
    SummaryTable,
    render_page,
    video_data_uri,
    write_page,
)
from calce_jax.report.page_parts import ticks
from calce_jax.report.timeline import draw_timeline


def jpeg(shade, size=(32, 32)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade, 80, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def stage(treatments, moments, text="[[5, 10]]"):
    frames = [FrameView(5 * number, jpeg(40 * number), treatment) for number, treatment in enumerate(treatments)]
    return StageView(frames, moments, text)


SECOND = [MomentView(5, 10, 0.9), MomentView(1, 2, 0.1)]


def query(qid="q1", **changes):
    given = {
        "qid": qid,
        "video": "video_7",
        "query": "a <red> circle & a square",
        "kind": "visual",
        "duration": 20,
        "truth": [MomentView(5, 10)],
        "stages": {
            "stage 1": stage(["full", "compressed", "full", "compressed"], [MomentView(0, 10, 0.5)]),
            "stage 2": stage(["dropped", "full", "compressed", "dropped"], SECOND),
        },
        "captions": [CaptionView(1, 2, "a <b>lighthouse</b>", 0.93, True), CaptionView(3, 4, "unheard", None, False)],
    }
    return QueryView(**{**given, **changes})


class Elements(HTMLParser):
    """Collects every start tag with its attributes, and checks that tags are closed in order."""

    void = frozenset({"meta", "input", "br", "img"})

    def __init__(self, html):
        super().__init__()
        self.found, self.open, self.words = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data.strip())

    def of_class(self, *names):
        return [attrs for _, attrs in self.found if set(names) <= set((attrs.get("class") or "").split())]

    def text(self):
        return " ".join(word for word in self.words if word)


def test_page_shows_every_part_of_a_query():
    elements = Elements(render_page("Found", [query()], subtitle="tiny"))
    text = elements.text()
    for words in ("Found", "tiny", "a <red> circle & a square", "video_7", "a <b>lighthouse</b>", "similarity 0.93"):
        assert words in text
    assert "unheard" not in text
    assert [len(elements.of_class("frame", treatment)) for treatment in ("full", "compressed", "dropped")] == [3, 3, 2]
    assert elements.of_class("frame", "dropped")[0]["data-words"] == "0 s, dropped"
    overlaps = [attrs["class"] for attrs in elements.of_class("hit")]
    assert overlaps == ["stage-1 hit", "stage-2 hit"]
    assert "0.50" in text
    assert "1.00" in text


def test_a_query_that_does_not_happen_is_shown_as_such():
    nowhere = {"stage 1": replace(stage(["full"], [], "[]"), is_absent=True), "stage 2": stage(["full"], [], "[[")}
    text = Elements(render_page("Found", [query(truth=[], stages=nowhere)])).text()
    assert "does not happen" in text
    notes = ("It does not happen.", "No moment could be read from the answer.")
    assert [text.count(note) for note in notes] == [1, 1]
    assert "does not happen" not in Elements(render_page("Found", [query(truth=None)])).text()


def test_the_saliency_of_a_stage_is_a_curve_over_its_clips():
    curved = replace(stage(["full"], [MomentView(2, 4, 0.9)]), saliency=[0.0, 0.25, 1.0005])
    elements = Elements(render_page("Found", [query(duration=8, stages={"stage 1": curved})]))
    (attrs,) = [attrs for tag, attrs in elements.found if tag == "polygon"]
    assert attrs["points"] == "0,1 0,1 12.5,1 37.5,0.75 62.5,0 100,0 100,1"
    assert elements.of_class("curve", "stage-1")
    assert "polygon" not in [tag for tag, _ in Elements(render_page("Found", [query()])).found]


def test_bars_lie_where_the_seconds_are():
    elements = Elements(render_page("Found", [query()]))
    bars = {attrs["aria-label"]: attrs["style"] for attrs in elements.of_class("first") if attrs["data-start"] == "5"}
    assert set(bars.values()) == {"left: 25.0%; width: 25.0%"}
    frame = elements.of_class("frame")[1]
    assert frame["style"] == "left: 25.0%; width: 25.0%"


def test_images_are_there_once():
    html = render_page("Found", [query("q1"), query("q2")])
    assert html.count("data:image/jpeg;base64,") == 4


def outside(html):
    """Return everything an HTML page refers to that is not in it."""
    names = ("src", "href", "srcset", "poster")
    targets = [attrs[name] for _, attrs in Elements(html).found for name in names if name in attrs]
    targets += re.findall(r"url\((.*?)\)", html) + videos_of(html)
    return [target for target in targets if not target.startswith("data:")]


def videos_of(html):
    return json.loads(re.search(r'<script type="application/json" id="videos">(.*?)</script>', html)[1])


def test_a_report_is_one_file_with_each_video_once(tmp_path):
    films = {}
    for name in ("one.mp4", "two.webm"):
        (tmp_path / name).write_bytes(name.encode())
        films[name] = video_data_uri(tmp_path / name)
    queries = [query("q1", video_src=films["two.webm"]), query("q2", video_src=films["one.mp4"])]
    write_page(tmp_path / "report.html", "Found", [*queries, query("q3", video_src=films["two.webm"]), query("q4")])
    html = (tmp_path / "report.html").read_text()
    assert outside(html) == []
    assert "http" not in html
    assert "@import" not in html
    kinds, contents = zip(*(uri.removeprefix("data:").split(";base64,") for uri in videos_of(html)), strict=True)
    assert kinds == ("video/webm", "video/mp4")
    assert [base64.b64decode(content) for content in contents] == [b"two.webm", b"one.mp4"]
    players = [attrs for tag, attrs in Elements(html).found if tag == "video"]
    assert [player["data-video"] for player in players] == ["0", "1", "0"]
    folds = [attrs for tag, attrs in Elements(html).found if tag == "details"]
    assert len(folds) == 3
    assert not any("open" in fold for fold in folds)
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        video_data_uri(tmp_path / "gone.mp4")


def test_search_page_has_no_truth_and_no_filters():
    html = render_page("Found", [query(truth=None, kind="", video_src="a&b</script>.mp4")])
    assert outside(html) == ["a&b</script>.mp4"]
    elements = Elements(html)
    assert "IoU" not in elements.text()
    assert not any(tag == "form" for tag, _ in elements.found)
    assert not elements.of_class("hit")
    assert not elements.of_class("miss")


def test_filters_know_kind_and_overlap():
    missed = query("q2", kind="caption", stages={"stage 1": stage(["full"], [], "[[")}, captions=[])
    elements = Elements(render_page("Found", [query(), missed]))
    cards = elements.of_class("query")
    assert [(card["data-kind"], card["data-iou"]) for card in cards] == [("visual", "1.0"), ("caption", "0.0")]
    text = elements.text()
    assert "No moment could be read from the answer." in text
    assert "The video has none." in text


def test_summary_shows_missing_numbers_as_dashes():
    table = SummaryTable("Held out", ["R1@0.5", "mIoU"], [("stage 1", [87.25, None])], "percent")
    elements = Elements(render_page("Found", [query()], [table]))
    assert "87.2" in elements.text()
    assert len(elements.of_class("none")) == 1


def test_a_frame_that_is_no_image_is_named():
    broken = StageView([FrameView(0, b"not a picture", "full")], [], "")
    with pytest.raises(ValueError, match="a frame of 13 bytes is not an image"):
        render_page("Found", [query(stages={"stage 1": broken})])


@pytest.mark.parametrize(("duration", "expected"), [(20, 11), (31, 7), (150, 11), (7.5, 8), (0.4, 1), (10**6, 278)])
def test_ticks_are_few_and_inside(duration, expected):
    marks = ticks(duration)
    assert len(marks) == expected
    assert marks[0] == 0
    assert marks[-1] <= duration


def test_timeline_draws_windows_at_their_seconds():
    frames = np.full((8, 24, 32, 3), 200, np.uint8)
    image = draw_timeline([[0, 10]], {"stage 1": [[5, 10, 0.9], [0, 2, 0.1]], "stage 2": []}, 20, frames)
    assert (image.dtype, image.shape[1:]) == (np.uint8, (960, 3))
    left, right = 84, 948
    true_row, first_row = 12 + 84 + 13, 12 + 84 + 26 + 13
    middle = (left + right) // 2
    assert image[true_row, left + 5].tolist() == image[true_row, middle - 5].tolist() == [14, 132, 103]
    assert image[true_row, middle + 5].tolist() == [255, 255, 255]
    assert image[first_row, middle - 5].tolist() == [194, 101, 12]
    assert image[first_row, left + 20].tolist() == [255, 255, 255]


def test_timeline_keeps_windows_inside_and_takes_no_frames():
    image = draw_timeline([], {"stage 1": [[15, 60]]}, 20, np.zeros((0, 4, 4, 3), np.uint8))
    assert image[: 12 + 84 + 2 * 26, 950:].min() == 255
    with pytest.raises(ValueError, match="positive number of seconds"):
        draw_timeline([], {}, 0, np.zeros((0, 4, 4, 3), np.uint8))
