"""Frame selection, timestamps, rotation, damaged files, and JPEG."""

import json
import pickle
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from calce_jax.speech.audio import AudioError, NoAudioError
from calce_jax.video.decode import VideoError, decode_jpeg, encode_jpeg, head_indices, read_frames, video_duration
from tests.helpers.video_files import GREY, write_clip

# By decord 0.6.0: crc32 of VideoReader(path, width=224, height=224).get_batch(head indices of 10 frames).
DECORD = {"chaplin.mp4": 1449964913, "nasa_13013.mp4": 629830505}


def test_head_indices_as_recorded(shared):
    cases = json.loads((shared / "golden/11_frames.json").read_text())["cases"]
    # The original has an option to read a part of a video ("clip"), which it never uses.
    cases = [case for case in cases if case["clip"] is None]
    assert len(cases) == 18
    for case in cases:
        assert head_indices(case["vlen"], case["n_frms"]).tolist() == case["head"]
        times = np.asarray(case["head"]) / case["fps"]
        np.testing.assert_allclose(case["timestamps_stage1"], times, rtol=1e-7)


@pytest.mark.parametrize(
    ("total", "wanted", "indices"),
    [(10, 5, [0, 2, 4, 6, 8]), (7, 3, [0, 2, 4]), (3, 5, [0, 1, 2]), (1, 1, [0]), (0, 4, []), (100, 1, [0])],
)
def test_head_indices(total, wanted, indices):
    assert head_indices(total, wanted).tolist() == indices


@pytest.mark.parametrize(("total", "wanted"), [(10, 0), (-1, 3)])
def test_head_indices_of_invalid_counts(total, wanted):
    with pytest.raises(ValueError, match="at least one"):
        head_indices(total, wanted)


@pytest.mark.parametrize("name", DECORD)
def test_bit_equal_to_decord(shared, name):
    video = read_frames(shared / "media/video" / name, 10)
    assert zlib.crc32(video.frames.tobytes()) == DECORD[name]
    reference = read_frames(shared / "media/video" / name, 10, behaviour="reference")
    np.testing.assert_array_equal(reference.frames, video.frames)
    np.testing.assert_array_equal(reference.times, video.times)


@pytest.mark.parametrize(
    "options",
    [
        {"name": "clip.mp4"},
        {"name": "clip.mkv"},  # no frame count in the header
        {"name": "clip.webm", "codec": "libvpx-vp9"},
        {"name": "clip.avi", "codec": "mpeg4"},
        {"name": "clip.mov", "codec": "mpeg4"},
        {"name": "odd.mkv", "codec": "ffv1", "pixels": "bgr0", "size": (63, 47)},
        {"name": "odd.mp4", "pixels": "yuv444p", "size": (63, 47)},
        {"name": "sound.mp4", "sound": True},
        {"name": "cover.mkv", "cover": True},
    ],
    ids=lambda options: options["name"],
)
def test_containers_and_codecs(tmp_path, options):
    path = write_clip(tmp_path / options.pop("name"), frames=30, rate=10, **options)
    video = read_frames(path, 6, size=32)
    assert (video.total_frames, video.fps) == (30, 10)
    assert video.duration == pytest.approx(3.0)
    assert video.indices.tolist() == [0, 5, 10, 15, 20, 25]
    assert video.frames.shape == (6, 32, 32, 3)
    assert video.times.dtype == np.float32
    np.testing.assert_allclose(video.times, [0, 0.5, 1, 1.5, 2, 2.5], rtol=1e-6)
    # Frame i has the grey level 8 * i; limited range and lossy codecs change it by less than half a step.
    np.testing.assert_allclose(video.frames[:, 16, 16, 0], GREY * video.indices, atol=GREY / 2 - 1)
    assert video_duration(path) == pytest.approx(3.0, abs=0.11)  # Matroska's last frame has no duration


def test_video_with_fewer_frames_than_requested(tmp_path):
    video = read_frames(write_clip(tmp_path / "short.mp4", frames=4, rate=2), 9, size=16)
    assert video.indices.tolist() == [0, 1, 2, 3]
    assert video.frames.shape == (4, 16, 16, 3)
    assert video.times.tolist() == [0, 0.5, 1, 1.5]


@pytest.mark.parametrize("name", ["varies.mp4", "varies.mkv"])
def test_variable_frame_rate_gives_presentation_times(tmp_path, name):
    # A second and a half of ten frames a second, then three seconds of five frames a second.
    ticks = [*range(0, 15), *range(15, 45, 2)]
    path = write_clip(tmp_path / name, frames=30, rate=10, ticks=ticks)
    video = read_frames(path, 6, size=16)
    assert video.indices.tolist() == [0, 5, 10, 15, 20, 25]
    np.testing.assert_allclose(video.times, [0, 0.5, 1, 1.5, 2.5, 3.5], atol=2e-3)  # Matroska rounds to milliseconds
    assert video.duration == pytest.approx(4.5, abs=0.11)
    assert video.fps == pytest.approx(video.total_frames / video.duration)
    reference = read_frames(path, 6, size=16, behaviour="reference")
    np.testing.assert_allclose(reference.times, reference.indices / reference.fps, rtol=1e-6)
    np.testing.assert_array_equal(reference.frames, video.frames)


@pytest.mark.parametrize(("angle", "corner"), [(90, (1, 0)), (180, (1, 1)), (-90, (0, 1))])
def test_display_rotation_is_applied(tmp_path, angle, corner):
    # The upper left quarter is white; rotated counterclockwise by 90 degrees it is at the lower left.
    path = write_clip(tmp_path / "turned.mp4", frames=4, rate=4, rotation=angle, white_quarter=True)
    quarters = read_frames(path, 1, size=32).frames[0, 8::16, 8::16, 0] > 128
    assert np.argwhere(quarters).tolist() == [list(corner)]
    reference = read_frames(path, 1, size=32, behaviour="reference").frames[0, 8::16, 8::16, 0] > 128
    assert np.argwhere(reference).tolist() == [[0, 0]]


def test_frame_size_that_changes(tmp_path):
    # Annex B streams can be concatenated.
    parts = [write_clip(tmp_path / f"{w}.h264", frames=5, rate=5, size=(w, 48)).read_bytes() for w in (64, 96)]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(parts))
    video = read_frames(path, 10, size=16)
    assert video.frames.shape == (10, 16, 16, 3)
    np.testing.assert_allclose(video.frames[:5], video.frames[5:], atol=2)


def test_hidden_frames_are_not_counted(tmp_path):
    # VP9 with alternate references: some packets are never shown on their own.
    path = write_clip(tmp_path / "hidden.webm", frames=40, rate=10, codec="libvpx-vp9", options={"auto-alt-ref": "1"})
    assert read_frames(path, 4, size=16).total_frames == 40


def test_threads_do_not_change_frames(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", frames=20, rate=10)
    np.testing.assert_array_equal(
        read_frames(path, 7, size=16, threads=1).frames, read_frames(path, 7, size=16, threads=3).frames
    )


def test_truncated_file(tmp_path):
    path = write_clip(tmp_path / "cut.mkv", frames=60, rate=10, noise=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        VideoError, match=r"cut\.mkv: it is truncated: its header gives 6\.0 s, and .* s can be decoded; fetch"
    ):
        read_frames(path, 5)


def test_truncated_mp4_with_its_header_in_front(tmp_path):
    path = write_clip(tmp_path / "cut.mp4", frames=60, rate=10, noise=True, container={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"it is truncated: its header gives 6\.0 s, and .*; fetch"):
        read_frames(path, 5)


def test_truncated_mp4_without_its_header(tmp_path):
    path = write_clip(tmp_path / "cut.mp4", frames=20, rate=10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"cut\.mp4: it is not a video \(.*\); fetch the file again"):
        read_frames(path, 5)


def test_damaged_middle_keeps_the_duration(tmp_path):
    path = write_clip(tmp_path / "damaged.mkv", frames=40, rate=10, noise=True, options={"g": "5"})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + len(content) // 10] = bytes(len(content) // 10)
    path.write_bytes(content)
    video = read_frames(path, 8, size=16)
    assert video.total_frames <= 40
    assert video.frames.shape == (8, 16, 16, 3)
    assert video.duration == pytest.approx(4.0, abs=0.2)


def test_text_file(tmp_path):
    path = tmp_path / "text.mp4"
    path.write_text("this is not a film\n" * 50)
    with pytest.raises(VideoError, match=r"text\.mp4: it is not a video"):
        read_frames(path, 5)


M3U8 = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{entry}\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("prefix", ["", "http://127.0.0.1:9/"])
@pytest.mark.parametrize(
    ("name", "playlist"),
    # FFmpeg itself opens a playlist by HLS under the second name alone.
    [("list.mp4", M3U8), ("list.m3u8", M3U8), ("list.ffconcat", "ffconcat version 1.0\nfile {entry}\n")],
)
def test_playlists_are_not_opened(tmp_path, name, playlist, prefix):
    clip = write_clip(tmp_path / "clip.ts", frames=5, rate=5)
    path = tmp_path / name
    path.write_text(playlist.format(entry=f"{prefix}{clip.name}"))
    with pytest.raises(VideoError, match=rf"{name}: it is not a video"):
        read_frames(path, 5)


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4: it is empty; fetch"):
        read_frames(tmp_path / "empty.mp4", 5)
    for read in (lambda path: read_frames(path, 5), video_duration):
        with pytest.raises(VideoError, match=r"gone\.mp4: there is no such file; put it there"):
            read(tmp_path / "gone.mp4")


def test_audio_file(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        sound.rate, sound.time_base, sound.pts = 8000, Fraction(1, 8000), 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"song\.mp4: it holds sound and no picture"):
        read_frames(path, 5)


@pytest.mark.parametrize("error_type", [VideoError, AudioError, NoAudioError])
def test_errors_cross_processes(error_type):
    error = pickle.loads(pickle.dumps(error_type("a.mp4", "it is empty", "fetch it")))
    assert type(error) is error_type
    assert error.path == Path("a.mp4")
    assert (error.reason, error.remedy, str(error)) == ("it is empty", "fetch it", "a.mp4: it is empty; fetch it")


def test_jpeg_keeps_colours(tmp_path):
    # At full chroma resolution, alternating columns of red and blue keep their colours.
    frame = np.zeros((16, 16, 3), np.uint8)
    frame[:, ::2, 0] = 255
    frame[:, 1::2, 2] = 255
    (content,) = encode_jpeg(frame[None], quality=100)
    np.testing.assert_allclose(decode_jpeg(content), frame, atol=4)


def test_jpeg_error_on_real_frames(shared):
    frames = read_frames(shared / "media/video/nasa_13013.mp4", 8).frames
    decoded = np.stack([decode_jpeg(content) for content in encode_jpeg(frames)])
    assert np.abs(decoded.astype(float) - frames).mean() < 1.0


def test_broken_jpeg():
    with pytest.raises(ValueError, match="JPEG"):
        decode_jpeg(b"\xff\xd8 this is no picture")
