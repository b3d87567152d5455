"""Rolling captions say every line once, at its own time; other captions are unchanged."""

from calce_jax.text.caption import Caption
from calce_jax.text.captions import read_srt
from calce_jax.text.rolling_captions import Entry, unroll

TRAIN, CAMERA, MUSEUM = "the train was old", "they say the camera is lovely", "my sister dreams of that museum"
ROLLING = [
    Entry(5.0, 10.99, [TRAIN]),
    Entry(10.99, 11.0, [TRAIN]),
    Entry(15.0, 18.99, [TRAIN, CAMERA]),
    Entry(18.99, 19.0, [CAMERA]),
    Entry(23.0, 28.99, [CAMERA, MUSEUM]),
    Entry(28.99, 29.0, [MUSEUM]),
]
PLAIN = [Entry(5.0, 11.0, [TRAIN]), Entry(15.0, 19.0, [CAMERA]), Entry(23.0, 29.0, [MUSEUM])]


def test_rolling_captions_are_those_of_the_plain_file():
    assert unroll(ROLLING) == PLAIN
    assert unroll(ROLLING[::2]) == [Entry(e.start, r.end, e.lines) for e, r in zip(PLAIN, ROLLING[::2], strict=True)]


def test_plain_captions_are_unchanged():
    dialogue = [Entry(0.0, 1.0, ["- No!"]), Entry(1.0, 2.0, ["- No!", "- Yes!"]), Entry(2.0, 3.0, ["- Why?", "- So!"])]
    refrain = [Entry(float(n), n + 1.0, ["Thank you."]) for n in range(5)]
    for entries in (PLAIN, dialogue, refrain, [], PLAIN[:1]):
        assert unroll(entries) == entries


def test_three_lines_on_the_screen():
    lines = [f"line {n}" for n in range(6)]
    rolling = [Entry(float(n), n + 1.0, lines[max(n - 2, 0) : n + 1]) for n in range(6)]
    assert unroll(rolling) == [Entry(float(n), n + 1.0, [lines[n]]) for n in range(6)]


def test_files_are_unrolled_by_default_alone(tmp_path):
    path = tmp_path / "rolling.srt"
    path.write_text(
        "".join(
            f"{n}\n00:00:{e.start:06.3f} --> 00:00:{e.end:06.3f}\n".replace(".", ",") + "\n".join(e.lines) + "\n \n\n"
            for n, e in enumerate(ROLLING, 1)
        )
    )
    assert read_srt(path) == [Caption(e.start, e.end, e.lines[0]) for e in PLAIN]
    assert len(read_srt(path, "reference")) == len(ROLLING)
