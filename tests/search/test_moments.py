"""Moments of `calce_jax.load(...).search(...)`: the list, clips, and the formats of other programs, read by these."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import opentimelineio as otio
import pytest

import calce_jax
from calce_jax.moments.player_time import TimeError, format_time, parse_time
from calce_jax.search.exports.text_formats import ExportError
from calce_jax.search.model import Model
from calce_jax.search.moment import Moment
from calce_jax.search.moment_list import MomentList
from calce_jax.search.paths import SearchError
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.searcher import Searcher
from calce_jax.search.segments import Segment
from calce_jax.search.video_result import QueryResult, UsedCaption, VideoResult
from calce_jax.text.prompt import Caption
from calce_jax.video.decode import VideoError
from tests.helpers.video_files import write_clip

QUERY, OTHER = "a dog; catches = a <ball> & runs", "=nothing"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "film.mp4", frames=250, rate=25)


@pytest.fixture
def moments(film: Path) -> MomentList:
    found = [
        Moment(film, QUERY, 6.0, 8.0, 0.9, (UsedCaption(6.5, 7.0, "look", 0.8),), (6.25, 7.5), 10.0, 1),
        Moment(film, QUERY, 1.0, 2.52, 0.5, (), (), 10.0, 2),
        Moment(film, OTHER, 0.2, 9.9, 0.4, (), (), 10.0, 1),
    ]
    return MomentList(found, queries=[QUERY, OTHER, "not there"])


@pytest.mark.parametrize(
    ("second", "text"),
    [
        (0, "00:00.0"),
        (7.5, "00:07.5"),
        (59.96, "01:00.0"),
        (66.04, "01:06.0"),
        (3599.96, "1:00:00.0"),
        (3727, "1:02:07.0"),
    ],
)
def test_times_are_those_of_a_player(second, text):
    assert format_time(second) == text
    assert parse_time(text) == pytest.approx(second, abs=0.05)


@pytest.mark.parametrize(
    ("text", "second"),
    [("66", 66), ("66.5", 66.5), ("66,5s", 66.5), ("1:06", 66), ("1:02:07.5", 3727.5), ("90:00", 5400)],
)
def test_times_people_write(text, second):
    assert parse_time(text) == second


@pytest.mark.parametrize("text", ["", "x", "1:60", "1:60:00", "-3", "1:2:3:4", "nan", "1e3", ":30"])
def test_what_is_no_time(text):
    with pytest.raises(TimeError, match="is no time; write seconds, m:ss or h:mm:ss"):
        parse_time(text)


def test_a_table(moments):
    assert str(moments).splitlines() == [
        QUERY,
        "  file        start      end  score",
        "  film.mp4  00:06.0  00:08.0  0.900",
        "  film.mp4  00:01.0  00:02.5  0.500",
        "",
        OTHER,
        "  file        start      end  score",
        "  film.mp4  00:00.2  00:09.9  0.400",
        "",
        "not there",
        "  no moment found",
    ]
    assert "  film.mp4   6.00  8.00  0.900" in moments.to_table(seconds=True)


def test_a_name_of_two_lines_stays_in_its_row_of_the_table():
    table = str(MomentList([Moment(Path("a\n\x1b[31mb.mp4"), "a cat", 1.0, 2.0, 0.5)]))
    assert table.splitlines()[2] == "  a??[31mb.mp4  00:01.0  00:02.0  0.500"


def test_a_notebook_shows_thumbnails(moments):
    page = moments._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "a dog; catches = a &lt;ball&gt; &amp; runs" in page
    assert "no moment found" in page


def test_an_image_is_that_of_its_second(tmp_path):
    film = write_clip(tmp_path / "film.mp4", frames=100, rate=10, noise=True)
    moment = Moment(film, "x", 2.0, 6.0, 1.0)
    assert moment.image().height == 360
    assert moment.jpeg() == moment.jpeg(4.0) != moment.jpeg(6.0)


def test_handles_end_with_the_video(moments):
    wide = moments.with_handles(3)
    assert [(m.start, m.end) for m in wide] == [(3, 10), (0, 5.52), (0, 10)]
    assert wide.queries == moments.queries


def test_json_and_csv(moments, tmp_path, film):
    rows = json.loads(moments.to_json(tmp_path / "m.json"))
    assert (tmp_path / "m.json").read_text() == moments.to_json()
    assert rows[0] == {
        "video": str(film),
        "query": QUERY,
        "position": 1,
        "start": 6.0,
        "end": 8.0,
        "score": 0.9,
        "captions": [{"start": 6.5, "end": 7.0, "text": "look", "similarity": 0.8}],
        "frames": [6.25, 7.5],
    }
    table = list(csv.DictReader(io.StringIO(moments.to_csv())))
    assert [(row["query"], row["start"], row["end_time"]) for row in table] == [
        (QUERY, "6.00", "00:08.0"),
        (QUERY, "1.00", "00:02.5"),
        ("'=nothing", "0.20", "00:09.9"),  # which no spreadsheet computes
    ]


def test_vtt_is_read_by_ffmpeg(moments, tmp_path):
    moments.to_vtt(tmp_path / "m.vtt")
    with av.open(str(tmp_path / "m.vtt")) as container:
        cues = [(float(p.pts * p.time_base), bytes(p).decode()) for p in container.demux() if p.size]
    assert [second for second, _ in cues] == [0.2, 1.0, 6.0]
    assert cues[2][1] == "a dog; catches = a &lt;ball&gt; &amp; runs (0.900)"


def test_chapters_are_read_by_ffmpeg(moments, tmp_path):
    moments.to_chapters(tmp_path / "m.txt")
    with av.open(str(tmp_path / "m.txt"), format="ffmetadata") as container:
        chapters = container.chapters()
    spans = [(float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"])) for c in chapters]
    assert spans == [(0.2, 1.0), (1.0, 2.52), (6.0, 8.0)]
    assert [c["metadata"]["title"] for c in chapters] == [OTHER, QUERY, QUERY]


@pytest.mark.parametrize(("name", "adapter"), [("otio", "otio_json"), ("edl", "cmx_3600"), ("fcpxml", "fcpx_xml")])
def test_editors_formats_are_read_back(name, adapter, moments, tmp_path, film):
    path = tmp_path / f"m.{name}"
    getattr(moments, f"to_{name}")(path)
    options = {"rate": 25} if name == "edl" else {}
    read = otio.adapters.read_from_file(str(path), adapter_name=adapter, **options)
    clips = list(read.find_clips() if hasattr(read, "find_clips") else read[0].find_clips())
    spans = [(c.source_range.start_time.to_seconds(), c.source_range.duration.to_seconds()) for c in clips]
    assert spans == [pytest.approx(span) for span in [(6.0, 2.0), (1.0, 1.52), (0.2, 9.72)]]
    if name == "otio":
        assert clips[0].media_reference.target_url == film.as_uri()
        assert clips[0].metadata["calce"] == {"query": QUERY, "score": 0.9}
    assert film.name in path.read_text() or film.stem in path.read_text()


def test_names_and_queries_cannot_add_lines_or_fields(film, tmp_path):
    name = "x\n009  AX       V     C        00:00:00:00\r=1+1\x01.mp4"
    evil = film.rename(film.with_name(name))
    moments = MomentList(
        [Moment(evil, "a\x01\n\n00:00:01.000 --> 00:00:02.000\n[CHAPTER]", 1.0, 2.0, 0.5, (), (), 10.0)]
    )
    assert not [line for line in moments.to_edl().splitlines() if line.startswith("009")]
    (row,) = csv.DictReader(io.StringIO(moments.to_csv(), newline=""))
    assert not any(value.startswith("=") or "\n" in value or "\r" in value for value in row.values())
    assert moments.to_vtt().splitlines()[3].startswith("a 00:00:01.000 --&gt; ")
    assert moments.to_chapters().splitlines().count("[CHAPTER]") == 1
    moments.to_fcpxml()
    moments.to_otio()


def test_formats_of_one_video_refuse_several(moments, film):
    several = MomentList([*moments, replace(moments[0], video=film.with_name("other.mp4"))])
    for write in (several.to_vtt, several.to_chapters):
        with pytest.raises(ExportError, match="a format for one video, the moments are of 2"):
            write()
    with pytest.raises(ExportError, match="there is no moment to write"):
        MomentList().to_edl()


def times_of(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [round(float(frame.time or 0), 3) for frame in container.decode(video=0)]


@pytest.mark.slow
def test_a_copied_clip_begins_at_the_key_frame_before(tmp_path):
    film = write_clip(tmp_path / "film.mp4", frames=250, rate=25)
    with av.open(str(film)) as container:
        keys = [float(p.pts * p.time_base) for p in container.demux(video=0) if p.is_keyframe and p.pts is not None]
    before = max(key for key in keys if key <= 6.0)
    for suffix in ("mp4", "mkv"):
        copied = Moment(film, "x", 6.0, 8.0, 1.0).clip(tmp_path / f"copied.{suffix}", copy=True)
        times = times_of(copied)
        assert times[0] == pytest.approx(0, abs=0.002)
        assert times[-1] == pytest.approx(8.0 - before - 0.04, abs=0.25)  # pictures are in the order of decoding
    exact = Moment(film, "x", 6.0, 8.0, 1.0).clip(tmp_path / "exact.mp4")
    assert len(times_of(exact)) == 50
    with pytest.raises(VideoError, match=r"no-such.mp4"):
        Moment(tmp_path / "no-such.mp4", "x", 6.0, 8.0, 1.0).clip(tmp_path / "y.mp4", copy=True)
    assert not list(tmp_path.glob("y.mp4*"))


@pytest.mark.slow
def test_a_copy_has_the_pictures_whose_time_of_decoding_matroska_leaves_out(tmp_path):
    film = tmp_path / "film.mkv"
    with av.open(str(film), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"bf": "2", "g": "50", "keyint_min": "50", "sc_threshold": "0"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(150):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    for start, first in ((0.0, 0), (1.0, 0), (3.0, 50)):
        copied = Moment(film, "x", start, start + 1.5, 1.0).clip(tmp_path / "copied.mkv", copy=True)
        with av.open(str(copied)) as container:
            shades = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)]
        with av.open(str(film)) as container:
            expected = [frame.to_ndarray(format="gray").mean() for frame in container.decode(video=0)][first]
        assert shades[0] == pytest.approx(expected, abs=1)
        assert len(shades) >= round((start + 1.5) * 25) - first


class FakeSearcher(Searcher):
    """Finds one moment for each query, with a score by the video's name."""

    def __init__(self):
        self.captions, self.notice, self.threshold = [], "meaningless", 0.0

    def search(self, video, queries, captions, *, max_moments):
        self.captions.append(list(captions))
        if "broken" in str(video):
            raise VideoError(video, "it is not a video", "choose another")
        score = 0.9 if "good" in str(video) else 0.2
        results = [
            QueryResult(
                query.strip(),
                {"stage 1": [], "stage 2": [ScoredWindow(1.0, 3.0, score)]},
                [UsedCaption(0.0, 0.5, "before", 0.1), UsedCaption(2.0, 4.0, "in it", 0.5)],
                [(0.5, "full"), (1.5, "full"), (2.5, "dropped"), (2.75, "compressed")],
                [Segment(0.0, 10.0)],
            )
            for query in queries
        ]
        return VideoResult(Path(video), 10.0, results)


def test_moments_of_several_videos_are_ranked_and_a_broken_one_is_listed(caplog):
    model = Model(FakeSearcher())
    moments = model.search(["bad.mp4", "broken.mp4", "good.mp4"], [" a dog ", "a cat"], None)
    assert [(m.query, m.video.name, m.position) for m in moments] == [
        (query, name, place) for query in ("a dog", "a cat") for place, name in [(1, "good.mp4"), (2, "bad.mp4")]
    ]
    assert [failure.video for failure in moments.failures] == ["broken.mp4"]
    assert "broken.mp4" in caplog.text
    assert moments[0].captions == (UsedCaption(2.0, 4.0, "in it", 0.5),)
    assert moments[0].frames == (1.5, 2.75)
    few = model.search(["bad.mp4", "good.mp4"], "a dog", None, min_score=0.5)
    assert [m.video.name for m in few] == ["good.mp4"]
    none = model.search("bad.mp4", "a dog", None, min_score=0.5)
    assert not none
    assert "probably not in these videos: no moment scores 0.5 or more" in str(none)
    with pytest.raises(VideoError, match="it is not a video"):
        model.search("broken.mp4", "a dog", None)


def test_captions_are_found_given_or_left_out(tmp_path):
    searcher = FakeSearcher()
    model = Model(searcher)
    (tmp_path / "good.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello there\n")
    video, captions = tmp_path / "good.mp4", [Caption(1.0, 2.0, "mine")]
    for given in ("auto", None, tmp_path / "good.srt", tmp_path, captions):
        model.search(video, "a dog", given)
    texts = [[caption.text for caption in found] for found in searcher.captions]
    assert texts == [["hello there"], [], ["hello there"], ["hello there"], ["mine"]]
    for given in (captions, tmp_path / "good.srt"):
        with pytest.raises(SearchError, match="captions of one video for 2 videos"):
            model.search([video, video], "a dog", given)
    with pytest.raises(SearchError, match="no video"):
        model.search([], "a dog")


def test_the_page_of_a_search(film, tmp_path):
    class OneFilm(FakeSearcher):
        def search(self, video, queries, captions, *, max_moments):
            return replace(super().search(video, queries, captions, max_moments=max_moments), video=film)

    page = Model(OneFilm()).search(film, "a dog").page(tmp_path / "out", clips=True)
    assert page.read_text().startswith("<!doctype html>")
    assert '<p class="notice" role="status">meaningless</p>' in page.read_text()
    assert list((tmp_path / "out/clips").iterdir())


@pytest.mark.slow
def test_three_lines_of_python():
    samples = Path(calce_jax.__file__).parent / "assets/tiny/samples"
    video = min(samples.glob("*.mp4"))
    model = calce_jax.load()
    moments = model.search(video, "A white circle appears.")
    best = moments[0]
    assert (best.start, best.end) == (0.0, 12.0)
    encoded = model.encode(video)
    assert list(model.search(encoded, "A white circle appears.")) == list(moments)
    assert re.search(r"00:00\.0 +00:12\.0", str(moments))
