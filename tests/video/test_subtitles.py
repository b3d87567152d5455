"""Text subtitles inside files of every container that has them."""

import time

import av
import pytest
from av.stream import Disposition

from calce_jax.text.caption import Caption
from calce_jax.text.embedded_captions import has_embedded_captions, read_embedded_captions
from calce_jax.video import subtitles
from calce_jax.video.subtitles import Subtitle, SubtitleError, SubtitleTrack, list_subtitle_tracks, read_subtitles
from tests.helpers.video_files import SubtitleStreamSpec, write_clip, write_subtitled_clip


@pytest.mark.parametrize(
    ("name", "codec", "written", "text"),
    [
        ("a.mkv", "subrip", "<i>Hello</i> &amp;\nyou", "Hello & you"),
        ("a.mkv", "webvtt", "<v Bob>Hello <00:00:00.700><c>there</c> &amp;", "Hello there &"),
        ("a.webm", "webvtt", "Hello\nthere", "Hello there"),
        ("a.mkv", "ass", "0,0,Default,,0,0,0,,{\\i1}Hello{\\i0}\\Nthere,\\hyou", "Hello there, you"),
        ("a.mp4", "mov_text", "Hello\nthere", "Hello there"),
        ("a.mov", "mov_text", "Grüße", "Grüße"),
    ],
)
def test_every_text_codec_becomes_captions(tmp_path, name, codec, written, text):
    events = [(0.5, 1.25, written), (2.0, 2.75, written)]
    path = write_subtitled_clip(tmp_path / name, [SubtitleStreamSpec(codec, events)])
    assert has_embedded_captions(path)
    assert read_embedded_captions(path) == [Caption(0.5, 1.25, text), Caption(2.0, 2.75, text)]


def test_times_are_a_players_though_timestamps_begin_late(tmp_path):
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("subrip", [(0.5, 1.5, "hello")])], start=60.0)
    with av.open(str(path)) as container:
        assert [packet.pts for packet in container.demux(subtitles=0)][:1] == [60_500]
    assert read_embedded_captions(path) == [Caption(0.5, 1.5, "hello")]


def test_an_hour_without_a_subtitle_is_no_fault(tmp_path):
    events = [(1.0, 2.0, "early"), (3601.0, 3602.0, "late")]
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("subrip", events)])
    assert [caption.start for caption in read_embedded_captions(path)] == [1.0, 3601.0]


def test_subtitles_without_a_duration_end_with_the_next(tmp_path):
    events = [(0.5, 0.5, "one"), (1.5, 1.5, "two")]
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("subrip", events)])
    [track] = list_subtitle_tracks(path)
    assert read_subtitles(path, track) == [Subtitle(0.5, 1.5, "one"), Subtitle(1.5, 6.5, "two")]


def test_drawings_are_no_speech(tmp_path):
    events = [
        (0.5, 1.0, "0,0,Default,,0,0,0,,{\\an7\\p1}m 0 0 l 1 1{\\p0}"),
        (1.0, 2.0, "1,0,Default,,0,0,0,,{\\pos(1,2)}sign"),
    ]
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("ass", events)])
    assert read_embedded_captions(path) == [Caption(1.0, 2.0, "sign")]


def test_a_stream_without_an_event_has_no_captions(tmp_path):
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("subrip", [])])
    assert read_embedded_captions(path) == []


def test_overrides_that_do_not_end_take_linear_time(tmp_path):
    text = "0,0,Default,,0,0,0,,{" + "\\p1" * 30_000
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("ass", [(0.5, 1.0, text)])])
    begin = time.process_time()
    read_embedded_captions(path)
    assert time.process_time() - begin < 10  # milliseconds; in quadratic time it took some minutes


def test_rolling_subtitles_say_every_line_once(tmp_path):
    events = [(0.0, 1.0, "a\nb"), (1.0, 2.0, "b\nc"), (2.0, 3.0, "c\nd")]
    path = write_subtitled_clip(tmp_path / "a.mkv", [SubtitleStreamSpec("subrip", events)])
    assert [caption.text for caption in read_embedded_captions(path)] == ["a b", "c", "d"]


def stream(text: str, language: str, disposition: Disposition | None = None, title: str = "") -> SubtitleStreamSpec:
    return SubtitleStreamSpec("subrip", [(0.5, 1.0, text)], language, title, disposition)


@pytest.mark.parametrize(
    ("streams", "language", "text"),
    [
        ([stream("hallo", "ger", Disposition.default), stream("hello", "eng")], None, "hello"),
        ([stream("hallo", "ger"), stream("salut", "fre", Disposition.default)], None, "salut"),
        ([stream("hallo", "ger"), stream("salut", "fre")], None, "hallo"),
        ([stream("sign", "eng", Disposition.forced), stream("hallo", "ger")], None, "hallo"),
        ([stream("sign", "eng", Disposition.forced)], None, "sign"),
        ([stream("hello", "eng"), stream("hallo", "ger")], "German", "hallo"),
        ([stream("hello", "eng"), stream("hallo", "deu")], "de", "hallo"),
        ([stream("hello", "eng")], "de", None),
    ],
)
def test_the_stream_that_is_taken(tmp_path, caplog, streams, language, text):
    path = write_subtitled_clip(tmp_path / "a.mkv", streams)
    captions = read_embedded_captions(path, language)
    assert [caption.text for caption in captions] == ([text] if text else [])
    assert ("of its subtitles stream" in caplog.text) == (len(streams) > 1 and language is None)


def test_the_warning_names_the_streams(tmp_path, caplog):
    path = write_subtitled_clip(tmp_path / "a.mkv", [stream("a", "und"), stream("b", "eng", title="Full")])
    read_embedded_captions(path)
    assert "a.mkv: of its subtitles stream 2 (eng, Full) is used, not stream 1 (no language)" in caplog.text


def test_a_video_without_subtitles_has_none(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=3, rate=1, sound=True)
    assert not has_embedded_captions(path)
    assert read_embedded_captions(path) == []


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    with pytest.raises(SubtitleError, match=r"none\.mkv: there is no such file"):
        list_subtitle_tracks(tmp_path / "none.mkv")
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(SubtitleError, match=r"text\.mkv: it is not a video"):
        read_embedded_captions(tmp_path / "text.mkv")
    path = write_subtitled_clip(tmp_path / "a.mkv", [stream("hello", "eng")])
    with pytest.raises(SubtitleError, match=r"a\.mkv: it has no text subtitles in stream 7 \(no language\)"):
        read_subtitles(path, SubtitleTrack(7, "", "", False, False))
    monkeypatch.setattr(subtitles, "MAX_CHARACTERS", 4)
    with pytest.raises(SubtitleError, match=r"stream 1 \(eng\) has more than 4 characters; give the captions"):
        read_embedded_captions(path)
