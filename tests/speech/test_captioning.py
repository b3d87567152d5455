"""Captioning folders of videos, and the commands that use the captions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import av
import jax
import numpy as np
import pytest

from calce_jax.speech import captioning
from calce_jax.speech.audio import SAMPLE_RATE
from calce_jax.speech.captioning import (
    caption_videos,
    caption_without_srt,
    format_srt,
    lazy_transcriber,
)
from calce_jax.speech.inputs import CaptioningError, find_videos
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.speech.transcribe import Transcriber, Transcript
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.text.caption import Caption
from calce_jax.text.captions import read_srt
from tests.helpers.audio_files import music, tone, write_audio
from tests.helpers.commands import run_script
from tests.helpers.video_files import write_clip

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def weights(shared):
    return shared / "weights" / "whisper-tiny.en"


def run(*command, **variables):
    """Run a script of `launch/` in a subprocess on one device, and return its stdout."""
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", **variables}
    completed = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


class FakeTranscriber(Transcriber):
    """A transcriber without a model, for which a video's caption is its own stem."""

    def __init__(self):
        self.options, self.num_opened, self.loaded = TranscriptionOptions(batch_size=2), 0, []

    def __call__(self):
        self.num_opened += 1
        return self

    def load_audio(self, path):
        self.loaded.append(path.name)
        return path

    def transcribe(self, audio_files):
        for video, _ in audio_files:
            yield video, Transcript([Caption(0.0, 1.0, video.stem)], "en", 2.0)


def videos_of(folder: Path, *names: str) -> list[Path]:
    """Create empty files, and return the videos among them."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return find_videos(folder)


def test_existing_srts_are_kept_and_the_model_is_not_opened(tmp_path):
    videos, out = videos_of(tmp_path / "films", "a.mp4", "b.mkv", "c.wav", "notes.txt"), tmp_path / "out"
    assert [video.name for video in videos] == ["a.mp4", "b.mkv", "c.wav"]
    out.mkdir()
    (out / "b.srt").write_text("mine")
    transcriber = FakeTranscriber()
    result = caption_videos(videos, out, transcriber)
    assert [path.name for path in result.written] == ["a.srt", "c.srt"]
    assert sorted(transcriber.loaded) == ["a.mp4", "c.wav"]
    assert (out / "b.srt").read_text() == "mine"
    assert read_srt(out / "a.srt") == [Caption(0.0, 1.0, "a")]
    assert result.seconds == 4.0
    again = caption_videos(videos, out, transcriber)
    assert (len(again.existing), again.written, transcriber.num_opened) == (3, [], 1)
    assert not (out / "failures.jsonl").exists()
    assert not list(out.glob("*.part"))


def test_captions_in_any_case_are_not_made_again(tmp_path):
    videos, out = videos_of(tmp_path / "films", "GX010001.MP4", "IMG_0001.MOV", "a.m2ts"), tmp_path / "out"
    assert [video.name for video in videos] == ["GX010001.MP4", "IMG_0001.MOV", "a.m2ts"]
    out.mkdir()
    for name in ("GX010001.SRT", "a.en.srt"):
        (out / name).write_text("mine")
    result = caption_videos(videos, out, FakeTranscriber())
    assert [path.name for path in result.written] == ["IMG_0001.srt"]
    assert [path.name for path in result.existing] == ["GX010001.SRT", "a.en.srt"]


def test_the_longest_name_gets_captions(tmp_path):
    name = "動" * 83  # 249 bytes; with ".mp4" 253
    result = caption_videos(videos_of(tmp_path / "films", f"{name}.mp4"), tmp_path / "out", FakeTranscriber())
    assert [path.name for path in result.written] == [f"{name}.srt"]


def test_hosts_share_the_videos(tmp_path):
    videos = videos_of(tmp_path / "films", *(f"{n}.mp4" for n in range(5)))
    shares = [
        caption_videos(videos, tmp_path / "out", FakeTranscriber(), process_index=host, process_count=2).written
        for host in range(2)
    ]
    assert [[path.name for path in share] for share in shares] == [["0.srt", "2.srt", "4.srt"], ["1.srt", "3.srt"]]


def test_videos_of_the_same_stem(tmp_path):
    videos = videos_of(tmp_path / "films", "a.avi", "a.mp4")
    result = caption_videos(videos, tmp_path / "out", FakeTranscriber())
    assert [path.name for path in result.written] == ["a.srt"]
    (failure,) = map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    assert failure["video"].endswith("a.mp4")
    assert "a.avi has the same name" in failure["reason"]
    assert failure["remedy"] == "rename one of them"


def test_folders_without_videos(tmp_path):
    with pytest.raises(CaptioningError, match=r"--videos=.*: no such file or folder"):
        find_videos(tmp_path / "nowhere")
    with pytest.raises(CaptioningError, match="videos: no file in"):
        videos_of(tmp_path / "films", "notes.txt")


def test_captions_are_clipped_to_the_audio(tmp_path):
    captions = [Caption(0.0, 1.5, "One"), Caption(1.5, 9.0, "two"), Caption(8.5, 9.0, "after the end")]
    write_atomic(tmp_path / "a.srt", format_srt(captions, 8.25))
    assert read_srt(tmp_path / "a.srt") == [Caption(0.0, 1.5, "One"), Caption(1.5, 8.25, "two")]
    assert format_srt([], 3.0) == ""


@pytest.mark.parametrize(
    ("arguments", "notices"),
    [
        (("--condition_on_previous_text", "--novad_filter"), []),
        (
            ("--quote", "--noonly_voices"),
            [
                "--quote is deprecated; use --condition_on_previous_text",
                "--only_voices is deprecated; use --vad_filter",
            ],
        ),
    ],
)
def test_renamed_flags(tmp_path, monkeypatch, capsys, arguments, notices):
    options = []
    monkeypatch.setattr(captioning, "lazy_transcriber", lambda model, opts, dtype: options.append(opts))
    monkeypatch.setattr(captioning, "caption_videos", lambda *args, **kwargs: captioning.CaptioningResult())
    videos_of(tmp_path / "films", "a.mp4")
    run_script("caption", f"--videos={tmp_path}/films", f"--out={tmp_path}/out", "--model=tiny", *arguments)
    (option,) = options
    assert (option.condition_on_previous_text, option.vad_filter) == (True, False)
    assert capsys.readouterr().err.splitlines() == notices


def test_words_are_written_beside_the_srt(tmp_path):
    videos, out = videos_of(tmp_path / "films", "a.mp4", "b.mp4"), tmp_path / "out"
    out.mkdir()
    (out / "b.srt").write_text("mine")
    transcriber = FakeTranscriber()
    transcriber.options = TranscriptionOptions(batch_size=2, word_timestamps=True)
    result = caption_videos(videos, out, transcriber, word_timestamps=True)
    assert json.loads((out / "a.json").read_text())["segments"][0]["text"] == "a"
    assert not (out / "b.json").exists()
    assert result.without_words == [out / "b.srt"]
    again = caption_videos(videos, out, transcriber, word_timestamps=True)
    assert (again.written, again.without_words) == ([], [out / "b.srt"])
    assert caption_videos(videos, out, transcriber).without_words == []


def test_options_of_the_transcription(tmp_path, monkeypatch, capsys):
    options = []
    monkeypatch.setattr(captioning, "lazy_transcriber", lambda model, opts, dtype: options.append(opts))
    monkeypatch.setattr(
        captioning,
        "caption_videos",
        lambda *args, word_timestamps, **kwargs: captioning.CaptioningResult(without_words=[Path("a.srt")]),
    )
    videos_of(tmp_path / "films", "a.mp4")
    arguments = ["caption", f"--videos={tmp_path}/films", f"--out={tmp_path}/out", "--model=tiny"]
    given = ["--word_timestamps", "--hotwords=Jezero, Ingenuity", "--max-line-width=42", "--language=German"]
    run_script(*arguments, *given)
    expected = TranscriptionOptions(
        word_timestamps=True, hotwords="Jezero, Ingenuity", max_line_width=42, language="German"
    )
    assert options == [expected]
    assert "a.srt: existed already, so --word_timestamps does nothing; remove it" in capsys.readouterr().out
    for flag, message in (
        ("--max_line_count=2", "max_line_count: does nothing without max_line_width"),
        ("--hotwords= ", "hotwords: empty"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_script(*arguments, flag)


@pytest.mark.slow
def test_damaged_files_do_not_stop_the_others(tmp_path, shared, weights):
    films, out = tmp_path / "films", tmp_path / "out"
    films.mkdir()
    rng = np.random.default_rng(0)
    write_clip(films / "mute.mp4", frames=3, rate=5)
    write_audio(films / "silence.wav", np.zeros(2 * SAMPLE_RATE, np.float32), rate=SAMPLE_RATE)
    write_audio(films / "noise.wav", rng.normal(0, 0.1, 2 * SAMPLE_RATE).astype(np.float32), rate=SAMPLE_RATE)
    write_audio(films / "music.mp4", music(4, 44100), rate=44100, codec="aac", pictures=4)
    (films / "empty.mp4").touch()
    (films / "text.mp4").write_text("no video")
    whole = write_audio(tmp_path / "whole.mp4", tone(9, SAMPLE_RATE), rate=SAMPLE_RATE, codec="aac")
    (films / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    shutil.copyfile(shared / "media" / "speech" / "jfk.flac", films / "jfk.flac")
    result = caption_videos(find_videos(films), out, lazy_transcriber(weights, TranscriptionOptions(batch_size=1)))
    assert {Path(failure.video).name for failure in result.failures} == {"empty.mp4", "text.mp4", "cut.mp4"}
    listed = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert {row["video"] for row in listed} == {failure.video for failure in result.failures}
    assert all(row["reason"] and row["remedy"] for row in listed)
    assert [path.name for path in result.no_audio] == ["mute.mp4"]
    assert {path.name for path in result.no_speech} == {"silence.wav", "noise.wav", "music.mp4"}
    for name in ("mute", "silence", "noise", "music"):
        assert (out / f"{name}.srt").read_text() == ""
    text = " ".join(caption.text for caption in read_srt(out / "jfk.srt")).lower()
    assert "what you can do for your country" in text


@pytest.mark.release
def test_5_1_and_8_khz(tmp_path, shared, weights):
    source = shared / "media" / "speech" / "jfk.flac"
    with av.open(str(source)) as container:
        mixer = av.AudioResampler("flt", "mono", 48000)
        speech = np.concatenate([p.to_ndarray()[0] for f in container.decode(audio=0) for p in mixer.resample(f)])
    surround = np.zeros((6, len(speech)), np.float32)
    surround[2] = speech
    films = tmp_path / "films"
    films.mkdir()
    write_audio(films / "surround.mkv", surround, rate=48000, layout="5.1", codec="aac")
    write_audio(films / "telephone.wav", speech[::6], rate=8000)
    result = caption_videos(
        find_videos(films), tmp_path / "out", lazy_transcriber(weights, TranscriptionOptions(batch_size=4))
    )
    assert not result.failures
    for path in result.written:
        text = " ".join(caption.text for caption in read_srt(path)).lower()
        assert "my fellow americans" in text
        assert "country" in text


@pytest.mark.release
def test_only_videos_without_an_srt_are_captioned(tmp_path, shared, weights):
    film = tmp_path / "nasa.mp4"
    shutil.copyfile(shared / "media" / "video" / "nasa_13013.mp4", film)
    srts = caption_without_srt([film], tmp_path / "srts", weights)
    assert srts == {film: tmp_path / "srts" / "nasa.srt"}
    assert "Space Telescope" in srts[film].read_text()
    shutil.copyfile(srts[film], film.with_suffix(".srt"))
    assert caption_without_srt([film], tmp_path / "others", "no model is opened") == {}


def copy_without_captions(source: Path, target: Path) -> None:
    """Copy the picture and the sound of a film whose captions a search would read, in place of listening."""
    with av.open(source) as film, av.open(target, "w") as copy:
        kept = [film.streams.video[0], film.streams.audio[0]]
        streams = {stream.index: copy.add_stream_from_template(stream) for stream in kept}
        for packet in film.demux(kept):
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                copy.mux(packet)


@pytest.mark.release
def test_from_a_narrated_film_to_its_moments(tmp_path, shared, weights):
    films, srts, prepared = tmp_path / "films", tmp_path / "srts", tmp_path / "prepared"
    films.mkdir()
    copy_without_captions(shared / "media" / "video" / "nasa_13013.mp4", films / "nasa.mp4")
    programs = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    model = f"--model={weights}"
    stdout = run("launch/caption.py", f"--videos={films}", f"--out={srts}", model, "--batch_size=1", **programs)
    assert "1 files of captions written" in stdout
    captions = read_srt(srts / "nasa.srt")
    text = " ".join(caption.text for caption in captions)
    assert "Space Telescope" in text
    assert "Goddard Space Flight Center" in text
    assert all(0 <= caption.start < caption.end <= 13.1 for caption in captions)

    query = {
        "qid": 1,
        "vid": "nasa",
        "query": "Someone talks about a telescope.",
        "duration": 13.0,
        "relevant_windows": [[0, 6]],
    }
    (tmp_path / "test.jsonl").write_text(json.dumps(query) + "\n")
    run(
        "launch/prepare.py",
        "--dataset=qvhighlights",
        f"--videos={films}",
        f"--srts={srts}",
        f"--annotations=test={tmp_path / 'test.jsonl'}",
        f"--out={prepared}",
        "--frames=20",
        "--image_size=56",
        "--workers=1",
    )
    with np.load(prepared / "videos" / "nasa.npz") as stored:
        assert [text for _, _, text in json.loads(str(stored["captions"]))] == [caption.text for caption in captions]

    out = tmp_path / "found"
    run(
        "launch/search.py",
        films / "nasa.mp4",
        "--query=Someone talks about a telescope.",
        f"--whisper={weights}",
        f"--out={out}",
        f"--cache={tmp_path / 'cache'}",
        **programs,
    )
    assert (out / "captions" / "nasa.srt").read_text() == (srts / "nasa.srt").read_text()
    assert json.loads((out / "moments.json").read_text())


@pytest.mark.slow
def test_devices_share_a_batch(shared, weights):
    assert jax.device_count() == 4
    transcriber = lazy_transcriber(weights, TranscriptionOptions(batch_size=4))()
    assert transcriber.padded_batch_size(1) == 4
    assert Transcriber(transcriber.model, TranscriptionOptions(batch_size=2)).padded_batch_size(2) == 2
    assert Transcriber(transcriber.model, TranscriptionOptions(batch_size=10)).padded_batch_size(9) == 12
