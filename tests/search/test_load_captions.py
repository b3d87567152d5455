"""From where the captions of a searched video come: beside it, inside it, or nowhere."""

import subprocess
import sys

import pytest

from calce_jax.errors import UsageError, UserError
from calce_jax.search.captions import caption_with_cache
from calce_jax.search.inputs import load_captions
from calce_jax.search.model import Model
from calce_jax.search.searcher import Searcher
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.text.languages import check_language
from tests.helpers.video_files import SubtitleStreamSpec, write_clip, write_subtitled_clip

SRT = "1\n00:00:01,000 --> 00:00:02,000\n{}\n"
VTT = "WEBVTT\n\n00:01.000 --> 00:02.000\n{}\n"


@pytest.fixture
def film(tmp_path):
    """A film with English and German subtitles inside."""
    streams = [SubtitleStreamSpec("subrip", [(0.5, 1.0, name)], name) for name in ("eng", "ger")]
    return write_subtitled_clip(tmp_path / "film.mkv", streams)


def texts(*arguments) -> list[str]:
    return [caption.text for caption in load_captions(*arguments)]


def test_srt_goes_before_vtt_and_vtt_before_subtitles_inside(film):
    assert texts(film, "auto") == ["eng"]
    film.with_suffix(".vtt").write_text(VTT.format("vtt"))
    assert texts(film, "auto") == texts(film, film.with_suffix(".vtt")) == texts(film, film.parent) == ["vtt"]
    film.with_suffix(".srt").write_text(SRT.format("srt"))
    assert texts(film, "auto") == ["srt"]
    assert texts(film, "none") == []


def test_a_language_is_taken_where_it_is_named(film):
    film.with_suffix(".srt").write_text(SRT.format("no language"))
    assert texts(film, "auto", "de") == ["ger"]
    film.with_suffix(".german.vtt").write_text(VTT.format("german"))
    assert texts(film, "auto", "de") == texts(film, film.parent, "de") == ["german"]
    assert texts(film, "auto", "fr") == []
    with pytest.raises(FileNotFoundError, match=r"film\.fr\.srt: no such file of captions"):
        load_captions(film, film.parent, "fr")


def test_subtitles_inside_are_not_taken_in_place_of_files_in_several_languages(film, caplog):
    film.with_suffix(".fr.vtt").write_text(VTT.format("fr"))
    film.with_suffix(".it.srt").write_text(SRT.format("it"))
    assert texts(film, "auto") == []
    assert "film.fr.vtt, film.it.srt; choose with --language" in caplog.text


def test_a_folder_without_captions_is_an_error_though_there_are_some_inside(film, tmp_path):
    (tmp_path / "srts").mkdir()
    with pytest.raises(FileNotFoundError, match=r"film\.srt: no such file of captions"):
        load_captions(film, tmp_path / "srts")


def test_a_file_that_is_no_video_has_no_captions(tmp_path, caplog):
    assert texts(tmp_path / "gone.mp4", "auto") == []
    (tmp_path / "text.mp4").write_text("no video")
    assert texts(tmp_path / "text.mp4", "auto") == []
    assert "subtitles inside a video are not used" in caplog.text
    assert texts(write_clip(tmp_path / "a.mp4", frames=3, rate=1), "auto") == []


def test_what_has_captions_is_not_transcribed(film, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("calce_jax.search.captions.caption_without_srt", lambda videos, *_: asked.extend(videos) or {})
    silent, told = (write_clip(tmp_path / name, frames=3, rate=1) for name in ("silent.mp4", "told.mp4"))
    told.with_suffix(".vtt").write_text(VTT.format("told"))
    assert caption_with_cache([film, silent, told], tmp_path / "out", "tiny", DiskCache(tmp_path / "cache")) == {}
    assert asked == [silent]


def test_captions_are_read_without_jax_and_transformers(film):
    code = (
        "import sys; from calce_jax.search.inputs import load_captions, check_queries, list_videos;"
        f"check_queries(['a']); assert load_captions(list_videos([{str(film)!r}])[0], 'auto');"
        "print([name for name in ('jax', 'transformers', 'flax', 'grain') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_a_language_that_is_not_there_is_said(film, caplog):
    assert texts(film, "auto", "French") == []
    assert "film.mkv: it has no captions that say that they are in 'French'" in caplog.text
    caplog.clear()
    assert texts(film, "auto", "German") == ["ger"]
    assert not caplog.text, "a stream that was asked for is no surprise"


def test_of_several_languages_the_warning_names_the_option(film, caplog):
    assert texts(film, "auto") == ["eng"]
    assert "choose with --language" in caplog.text


def test_with_a_language_captions_in_others_are_transcribed(film, tmp_path, monkeypatch):
    asked = []

    def caption(videos, folder, whisper, options, notice):
        asked.extend((video, options.language, options.hotwords) for video in videos)
        return {}

    monkeypatch.setattr("calce_jax.search.captions.caption_without_srt", caption)
    cache, notices = DiskCache(tmp_path / "cache"), []
    for language in (None, "de", "fr"):
        caption_with_cache(
            [film], tmp_path / "out", "tiny", cache, language=language, hotwords="Jezero", notice=notices.append
        )
    assert asked == [(film, "fr", "Jezero")]
    assert notices == [f"{film}: --whisper does nothing, since there are captions beside it or in it"] * 2


def test_options_are_part_of_what_is_cached(tmp_path, monkeypatch):
    video = tmp_path / "a.mp4"
    video.write_bytes(b"a video")
    transcribed, notices = [], []

    def caption(videos, folder, whisper, options, notice):
        (target,) = (folder / f"{video.stem}.srt" for video in videos)
        if not target.exists():
            transcribed.append(options.hotwords)
            target.parent.mkdir(exist_ok=True)
            target.write_text("")
        return {video: target}

    monkeypatch.setattr("calce_jax.search.captions.caption_without_srt", caption)
    cache = DiskCache(tmp_path / "cache")
    for hotwords in (None, "Jezero", None):
        caption_with_cache([video], tmp_path / "out", "tiny", cache, hotwords=hotwords, notice=notices.append)
    assert transcribed == [None, "Jezero"]
    assert notices == [f"{video}: no audio or no speech, as an earlier search found; its captions are empty"]


def test_what_can_be_a_language():
    for written in ("de", "ger", "pt-BR", "zh_Hans", "German", "tlh"):
        check_language(written)
    for written in ("", "klingonish", "d", "d3", "de-!"):
        with pytest.raises(UsageError, match=r"^language: .* is none; give a code, such as de or pt-BR"):
            check_language(written)


def test_a_model_reads_captions_in_the_language(film):
    class Stub(Searcher):
        def __init__(self):
            pass

        def search(self, video, queries, captions, *, max_moments):
            raise UserError(" ".join(caption.text for caption in captions))

    for language, text in (("German", "ger"), ("en", "eng")):
        with pytest.raises(UserError, match=text):
            Model(Stub()).search(film, "a dog", language=language)
    with pytest.raises(UsageError, match="language: 'klingonish' is none"):
        Model(Stub()).search(film, "a dog", language="klingonish")
