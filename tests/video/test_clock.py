"""Times on a player's clock: pictures that begin late, clocks that restart or jump, headers that are wrong."""

import numpy as np
import pytest

from calce_jax.speech.audio import read_audio
from calce_jax.video import decode
from calce_jax.video.decode import VideoError, frames_at, read_frames, video_duration
from tests.helpers.audio_files import tone, write_audio
from tests.helpers.video_files import GREY, write_clip

RATE = 10


def duration_by_frames(path):
    return read_frames(path, 4, size=16).duration


def shades(path, seconds):
    return [frame.mean() for frame in frames_at(path, seconds, 16)]


@pytest.mark.parametrize("name", ["late.mp4", "late.mkv", "late.ts"])
def test_a_picture_that_begins_after_the_sound_has_a_players_times(tmp_path, name):
    path = write_clip(tmp_path / name, frames=30, rate=RATE, ticks=[20 + n for n in range(30)], sound=True)
    video = read_frames(path, 6, size=16)
    np.testing.assert_allclose(video.times, [2, 2.5, 3, 3.5, 4, 4.5], atol=0.13)  # AAC begins 0.128 s before the sound
    assert video.duration == pytest.approx(5.0, abs=0.13)
    assert video_duration(path) == pytest.approx(5.0, abs=0.15)
    np.testing.assert_allclose(shades(path, [0.0, 2.05, 3.15, 9.0]), [0, 0, 10 * GREY, 29 * GREY], atol=GREY)
    reference = read_frames(path, 6, size=16, behaviour="reference")
    np.testing.assert_allclose(reference.times, [0, 0.5, 1, 1.5, 2, 2.5], rtol=1e-6)
    assert reference.duration == pytest.approx(3.0)


def test_the_sound_before_a_late_picture_is_heard(tmp_path):
    path = write_clip(tmp_path / "late.mp4", frames=30, rate=RATE, ticks=[20 + n for n in range(30)], sound=True)
    assert sum(map(len, read_audio(path))) / 16_000 == pytest.approx(1.0, abs=0.2)


def test_a_run_in_of_the_sound_does_not_move_the_picture(tmp_path):
    ticks = [12 + 10 * n for n in range(30)]
    path = write_clip(tmp_path / "sound.mkv", frames=30, rate=100, ticks=ticks, sound=True)
    np.testing.assert_allclose(read_frames(path, 3, size=16).times, [0, 1, 2], atol=1e-3)


@pytest.mark.parametrize("jump", [-1.0, 400.0])
def test_joined_recordings_follow_each_other(tmp_path, jump):
    first, second = (
        write_clip(tmp_path / f"{n}.ts", frames=30, rate=RATE, ticks=ticks, options={"g": "10"}, sound=True)
        for n, ticks in enumerate([[*range(30)], [round(max(jump, 0) * RATE) + n for n in range(30)]])
    )
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    video = read_frames(path, 12, size=16)
    np.testing.assert_allclose(video.times, np.arange(12) / 2, atol=0.05)
    assert video.duration == pytest.approx(6.0, abs=0.05)
    assert video_duration(path) == pytest.approx(6.0, abs=0.05)
    np.testing.assert_allclose(shades(path, [1.05, 2.95, 4.05, 5.95]), np.array([10, 29, 10, 29]) * GREY, atol=GREY)


def test_joined_sound_is_heard_once_after_the_other(tmp_path):
    parts = [
        write_audio(tmp_path / f"{n}.ts", tone(3, 16_000), rate=16_000, codec="aac", gap=(1.0, 1.0)) for n in (1, 2)
    ]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    samples = np.concatenate(list(read_audio(path)))
    assert len(samples) / 16_000 == pytest.approx(6.0, abs=0.3)
    is_loud = [np.abs(samples[round(at * 16_000) :][:4000]).mean() > 0.05 for at in (0.5, 1.5, 2.5, 3.5, 4.5, 5.5)]
    assert is_loud == [True, False, True] * 2  # each part is silent in its second second


@pytest.mark.parametrize(
    "tag",
    [b"00:00:30.000000000", b"00:00:00.000000000", b"00:00:01.000000000", b"3.0               ", b"--:--:--.---------"],
)
def test_a_wrong_tag_of_matroska_is_ignored(tmp_path, tag):
    path = write_clip(tmp_path / "tagged.mkv", frames=30, rate=RATE, sound=True)
    content = path.read_bytes()
    assert content.count(b"00:00:03.000000000") == 1
    path.write_bytes(content.replace(b"00:00:03.000000000", tag))
    assert duration_by_frames(path) == pytest.approx(3.0)
    assert video_duration(path) == pytest.approx(3.0, abs=0.11)


def test_a_stream_without_timestamps_has_the_times_of_its_rate(tmp_path):
    path = write_clip(tmp_path / "raw.h264", frames=50, rate=25, options={"x264-params": "force-cfr=1"})
    path = path.rename(tmp_path / "raw.mp4")
    assert video_duration(path) == pytest.approx(2.0)
    assert duration_by_frames(path) == pytest.approx(2.0)
    np.testing.assert_allclose(shades(path, [0.5, 1.0]), [12 * GREY, 25 * GREY], atol=GREY)


def test_fragments_are_all_counted(tmp_path):
    container = {"movflags": "frag_keyframe+empty_moov"}
    path = write_clip(tmp_path / "parts.mp4", frames=30, rate=RATE, options={"g": "10"}, container=container)
    assert video_duration(path) == pytest.approx(3.0)


@pytest.mark.parametrize("error", [RuntimeError("inside"), MemoryError(), KeyError("tag")])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    path = write_clip(tmp_path / "clip.mkv", frames=4, rate=2, sound=True)

    def broken(*_):
        raise error

    monkeypatch.setattr(decode, "_packets", broken)
    monkeypatch.setattr(decode, "_decode_packets", broken)
    monkeypatch.setattr("calce_jax.speech.audio._decode_frames", broken)
    for read in (lambda: read_frames(path, 2), lambda: list(frames_at(path, [0.0])), lambda: video_duration(path)):
        with pytest.raises(VideoError, match=rf"clip\.mkv: it cannot be decoded \({type(error).__name__}: .*\); fetch"):
            read()
    with pytest.raises(ValueError, match=r"clip\.mkv: it cannot be decoded"):
        list(read_audio(path))
