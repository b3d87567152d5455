"""Clips: exact to the frame in every container, with the shape of the pixels and the sound of the source."""

import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from calce_jax.video.clips import cut_clip, thumbnails_at
from calce_jax.video.decode import VideoError, decode_jpeg
from tests.helpers.audio_files import write_audio
from tests.helpers.video_files import GREY, write_clip

RATE = 10


def pictures(path):
    """Return the times and the grey levels of a clip's pictures."""
    with av.open(str(path)) as clip:
        frames = [(frame.time, frame.to_ndarray(format="rgb24").mean()) for frame in clip.decode(video=0)]
    return np.array(frames).T


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.mp4", "a.mkv", "a.h264"])
@pytest.mark.parametrize("start", [0.0, 1.4])
def test_a_clip_is_exact_where_seeks_land_late(tmp_path, name, start):
    codec = "mpeg2video" if name.endswith("mpg") else "libx264"
    rate = 25  # a raw stream has no other
    video = write_clip(tmp_path / name, frames=60, rate=rate, codec=codec, options={"g": "20"})
    cut_clip(video, start, start + 0.8, tmp_path / "clip.mp4")
    times, shades = pictures(tmp_path / "clip.mp4")
    np.testing.assert_allclose(times, np.arange(20) / rate, atol=1e-3)
    expected = np.minimum(GREY * (round(start * rate) + np.arange(20)), 255)
    np.testing.assert_allclose(shades, expected, atol=GREY / 2)


def test_a_clip_between_two_pictures_of_a_slide_show_shows_the_one_on_the_screen(tmp_path):
    video = write_clip(tmp_path / "slides.mp4", frames=4, rate=1, ticks=[0, 30, 60, 90])
    cut_clip(video, 40.0, 50.0, tmp_path / "between.mp4")
    times, shades = pictures(tmp_path / "between.mp4")
    np.testing.assert_allclose(times, [0, 9.96], atol=1e-3)
    np.testing.assert_allclose(shades, [GREY, GREY], atol=2)
    cut_clip(video, 40.0, 70.0, tmp_path / "over.mp4")
    times, shades = pictures(tmp_path / "over.mp4")
    np.testing.assert_allclose(times, [0, 20, 29.96], atol=1e-3)
    np.testing.assert_allclose(shades, [GREY, 2 * GREY, 2 * GREY], atol=2)


def test_a_varying_rate_keeps_its_times(tmp_path):
    ticks = [0, 2, 5, 40, 41, 80, *range(200, 2000, 200)]
    video = write_clip(tmp_path / "varies.mkv", frames=len(ticks), rate=1000, ticks=ticks)
    cut_clip(video, 0.0, 1.0, tmp_path / "clip.mp4")
    times, _ = pictures(tmp_path / "clip.mp4")
    np.testing.assert_allclose(times[:-1], np.array([t for t in ticks if t < 1000]) / 1000, atol=1e-3)
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert clip.duration / av.time_base == pytest.approx(1.0, abs=0.01)


def test_a_clip_before_the_first_picture_shows_that(tmp_path):
    video = write_clip(tmp_path / "late.mp4", frames=30, rate=RATE, ticks=[20 + n for n in range(30)], sound=True)
    cut_clip(video, 0.0, 1.0, tmp_path / "clip.mp4")
    np.testing.assert_allclose(pictures(tmp_path / "clip.mp4"), [[0, 0.9], [0, 0]], atol=2)
    cut_clip(video, 1.0, 3.0, tmp_path / "clip.mp4")
    times, shades = pictures(tmp_path / "clip.mp4")
    np.testing.assert_allclose(times, [0, *np.arange(1, 2, 0.1)], atol=1e-3)
    np.testing.assert_allclose(shades, [0, *(GREY * np.arange(10))], atol=GREY / 2)
    assert [round(decode_jpeg(jpeg).mean() / GREY) for jpeg in thumbnails_at(video, [0.0, 2.55, 4.55])] == [0, 5, 25]


@pytest.mark.parametrize(("rotation", "aspect"), [(0, Fraction(64, 45)), (90, Fraction(45, 64))])
def test_a_clip_keeps_the_shape_of_the_pixels(tmp_path, rotation, aspect):
    video = write_clip(tmp_path / "a.mp4", frames=10, rate=RATE, rotation=rotation, pixel_aspect=Fraction(64, 45))
    cut_clip(video, 0.0, 0.5, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert clip.streams.video[0].sample_aspect_ratio == aspect


def test_sound_that_changes_from_stereo_to_surround_is_cut(tmp_path):
    parts = [
        write_clip(tmp_path / f"{layout}.ts", frames=10, rate=RATE, sound=True, layout=layout)
        for layout in ("stereo", "5.1")
    ]
    video = tmp_path / "joined.ts"
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    cut_clip(video, 0.0, 2.0, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert sum(frame.samples for frame in clip.decode(audio=0)) / 48_000 == pytest.approx(2.0, abs=0.3)
    assert len(pictures(tmp_path / "clip.mp4")[0]) == 20


def test_pictures_that_change_their_size_are_scaled_to_the_first(tmp_path):
    video = tmp_path / "joined.h264"
    parts = [write_clip(tmp_path / f"{w}.h264", frames=5, rate=25, size=(w, 48)) for w in (64, 96)]
    video.write_bytes(b"".join(part.read_bytes() for part in parts))
    cut_clip(video, 0.0, 0.4, tmp_path / "clip.mp4")
    assert len(pictures(tmp_path / "clip.mp4")[0]) == 10


def test_what_a_decoder_raises_names_the_video_and_leaves_no_file(tmp_path, monkeypatch):
    video = write_clip(tmp_path / "a.mp4", frames=10, rate=RATE)
    monkeypatch.setattr("calce_jax.video.clips._decode_packet", lambda _: {}["codec"])
    with pytest.raises(VideoError, match=r"a\.mp4: it cannot be cut from 0\.0 s to 1\.0 s \(KeyError"):
        cut_clip(video, 0.0, 1.0, tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=r"a\.mp4: it cannot be decoded \(KeyError"):
        thumbnails_at(video, [0.0])
    monkeypatch.setattr("calce_jax.video.clips._decode_packet", lambda _: ())
    with pytest.raises(VideoError, match=r"a\.mp4: no frame"):
        cut_clip(video, 0.0, 1.0, tmp_path / "clip.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not let a process choose its cores")
def test_the_same_clip_is_the_same_file_in_another_process(tmp_path):
    noise = (0.3 * np.random.default_rng(0).standard_normal((1, 3 * 8000))).clip(-1, 1).astype(np.float32)
    write_audio(tmp_path / "noise.mp4", noise, rate=8000, codec="aac", pictures=3)
    # Enough pictures for every thread of the encoder, which has as many as the machine has cores, to get some.
    write_clip(tmp_path / "long.mp4", frames=90, rate=30, noise=True, sound=True, size=(128, 96))
    # The process chooses its own cores: chosen before it starts, Python would fork, which JAX warns of.
    cut = (
        "import os, sys; os.sched_setaffinity(0, map(int, sys.argv[3:]));"
        "from calce_jax.video.clips import cut_clip; cut_clip(sys.argv[1], 0.5, 2.5, sys.argv[2])"
    )
    all_cores = sorted(os.sched_getaffinity(0))
    for name in ("noise.mp4", "long.mp4"):
        cut_clip(tmp_path / name, 0.5, 2.5, tmp_path / f"here_{name}")
        for cores in (all_cores[:1], all_cores):
            out = tmp_path / f"{len(cores)}_{name}"
            command = [sys.executable, "-c", cut, str(tmp_path / name), str(out), *map(str, cores)]
            subprocess.run(command, check=True)
            assert out.read_bytes() == (tmp_path / f"here_{name}").read_bytes()
