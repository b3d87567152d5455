"""Names that are too long are cut, and stay distinct."""

import pytest

from calce_jax.storage.atomic_files import atomic_replace_dir, write_atomic
from calce_jax.storage.failures import Failure, failure_table
from calce_jax.storage.file_names import MAX_NAME_BYTES, fit_name, single_line


def test_a_name_that_fits_is_unchanged():
    assert fit_name("film", ".srt") == "film.srt"
    assert fit_name("a" * 251, ".srt") == "a" * 251 + ".srt"


@pytest.mark.parametrize("letter", ["a", "動", "é"])
def test_names_that_are_cut_are_distinct_and_whole_characters(letter):
    names = {fit_name(letter * 250 + ending, ".part") for ending in "123"}
    assert len(names) == 3
    for name in names:
        assert MAX_NAME_BYTES - 3 < len(name.encode()) <= MAX_NAME_BYTES
        assert name.startswith(letter * 20)
        assert name.endswith(".part")


def test_an_ending_without_room_is_refused():
    with pytest.raises(ValueError, match="leaves no byte"):
        fit_name("a" * 10, "b" * 250)


def test_files_and_folders_with_the_longest_name_are_written(tmp_path):
    name = "動" * 83 + ".mp4"
    write_atomic(tmp_path / name, "content")
    with atomic_replace_dir(tmp_path / f"{name}ab") as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}ab"]


def test_a_name_is_printed_as_one_line_in_tables():
    assert single_line("a\nb\r\x1b[2J\u2028c\udc80.mp4") == "a?b??[2J?c?.mp4"
    assert single_line("動画 é\u200dx.mp4") == "動画 é\u200dx.mp4"
    table = failure_table([Failure("a\nb", "it is empty", "fetch it")]).splitlines()
    assert [line.split("  ")[0].strip() for line in table] == ["video", "a?b"]
