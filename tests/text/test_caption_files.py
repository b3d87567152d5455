"""Which file of captions is found for a video, in which language."""

import pytest

from calce_jax.text.caption import Caption
from calce_jax.text.caption_files import caption_languages, find_captions, read_captions
from calce_jax.text.languages import is_language, language_code


@pytest.fixture
def folder(tmp_path):
    def folder(names: str):
        for name in names.split():
            (tmp_path / name).touch()
        return tmp_path

    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("film.vtt", "film.vtt"),
        ("film.VTT", "film.VTT"),
        ("film.Vtt", "film.Vtt"),
        ("film.vtt film.srt", "film.srt"),
        ("film.Vtt film.Srt", "film.Srt"),
        ("film.en.vtt", "film.en.vtt"),
        ("film.english.vtt", "film.english.vtt"),
        ("film.pt-BR.vtt", "film.pt-BR.vtt"),
        ("film.en.vtt film.en.srt", "film.en.srt"),
        ("film.english.vtt film.eng.srt", "film.eng.srt"),  # one language
        ("film.en.sdh.srt film.en.vtt", "film.en.vtt"),
        ("film.en.forced.srt film.en.srt", "film.en.srt"),
        ("film.vtt film.en.srt", "film.vtt"),
        ("film.en.vtt film.de.srt", None),
        ("film.part2.vtt film2.vtt film.vtt.bak", None),
    ],
)
def test_captions_of_a_video(folder, names, found):
    path = find_captions(folder(names), "film")
    assert (path and path.name) == found


@pytest.mark.parametrize(
    ("language", "found"),
    [
        ("de", "film.ger.vtt"),
        ("German", "film.ger.vtt"),
        ("en", "film.english.srt"),
        ("en-GB", "film.en-GB.srt"),
        ("pt", "film.pt-BR.srt"),
        ("Portuguese", "film.pt-BR.srt"),
        ("pt_br", "film.pt-BR.srt"),
        ("pt-PT", None),
        ("fr", None),
    ],
)
def test_captions_in_the_language_asked_for(folder, language, found):
    names = "film.srt film.ger.vtt film.en-GB.srt film.english.srt film.pt-BR.srt"
    path = find_captions(folder(names), "film", language)
    assert (path and path.name) == found


def test_languages_are_listed_by_code(folder):
    languages = caption_languages(folder("film.srt film.ger.vtt film.por_BR.srt film.klingon.srt"), "film")
    assert {code: path.name for code, path in languages.items()} == {
        "de": "film.ger.vtt",
        "klingon": "film.klingon.srt",
        "pt-br": "film.por_BR.srt",
    }
    assert caption_languages("none", "film") == {}


def test_languages_by_code_and_name():
    assert {language_code(written) for written in ("de", "ger", "deu", "German", " GERMAN ")} == {"de"}
    assert language_code("zho_Hans") == "zh-hans"
    assert is_language("en-US", "eng")
    assert not is_language("en", "en-US")
    assert not is_language("", "en")


def test_the_suffix_says_how_a_file_is_read(tmp_path):
    (tmp_path / "a.VTT").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\n<v Bob>a\n")
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\na\n")
    (tmp_path / "a.txt").write_text("1\n00:00:01,000 --> 00:00:02,000\na\n")
    for name, behaviour in (("a.VTT", "default"), ("a.VTT", "reference"), ("a.srt", "reference"), ("a.txt", "default")):
        assert read_captions(tmp_path / name, behaviour) == [Caption(1.0, 2.0, "a")]
