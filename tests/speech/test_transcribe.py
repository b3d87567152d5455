"""Sound, mel bands, voices, windows and segments."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calce_jax.speech.audio import SAMPLE_RATE, AudioError, NoAudioError, read_audio
from calce_jax.speech.mel import log_mel_spectrogram
from calce_jax.speech.segments import Segment, compression_ratio, split_segments
from calce_jax.speech.transcribe import AudioFeatures, OptionsError, Transcriber, TranscriptionOptions
from calce_jax.speech.vad import CHUNK_S, VoiceActivityDetector, speech_intervals
from calce_jax.speech.whisper_model import SpeechModelError, open_whisper
from calce_jax.text.text_row import Caption
from tests.helpers import recordings_io as golden
from tests.helpers.audio_files import music, tone, write_audio
from tests.helpers.video_files import write_clip

TIME = 100


def samples(path):
    return np.concatenate(list(read_audio(path)))


def loudness(part):
    return np.sqrt(np.square(part).mean())


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_any_rate_becomes_16_khz(tmp_path, rate):
    heard = samples(write_audio(tmp_path / "a.wav", tone(2, rate), rate=rate))
    assert abs(len(heard) - 2 * SAMPLE_RATE) <= 16
    np.testing.assert_allclose(heard[1000:-1000], tone(2, SAMPLE_RATE)[1000 : len(heard) - 1000], atol=2e-3)


def test_samples_at_16_khz_stay_as_they_are(tmp_path):
    sound = tone(1, SAMPLE_RATE)
    heard = samples(write_audio(tmp_path / "a.wav", sound, rate=SAMPLE_RATE))
    np.testing.assert_allclose(heard, sound, atol=2**-15)


def test_the_centre_of_5_1_is_heard(tmp_path):
    # FFmpeg's order: left, right, centre, bass, left and right behind.
    channels = np.zeros((6, 48000), np.float32)
    channels[2] = tone(1, 48000)
    heard = samples(write_audio(tmp_path / "a.wav", channels, rate=48000, layout="5.1"))
    assert abs(len(heard) - SAMPLE_RATE) <= 16
    assert loudness(heard) > 0.05
    both = np.stack([tone(1, 48000), tone(1, 48000)])
    assert loudness(samples(write_audio(tmp_path / "b.wav", both, rate=48000, layout="stereo"))) > 0.1


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mkv", "libopus"), (".mp3", "libmp3lame"), (".flac", "flac")]
)
def test_any_container_and_codec(tmp_path, suffix, codec):
    heard = samples(write_audio(tmp_path / f"a{suffix}", tone(2, 48000), rate=48000, codec=codec))
    assert abs(len(heard) / SAMPLE_RATE - 2) < 0.1
    assert loudness(heard) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_sound_that_begins_late_is_late(tmp_path):
    path = write_audio(tmp_path / "a.mkv", tone(2, SAMPLE_RATE), rate=SAMPLE_RATE, start_second=1.5, pictures=4)
    heard = samples(path)
    assert abs(len(heard) / SAMPLE_RATE - 3.5) < 0.05
    assert loudness(heard[: int(1.4 * SAMPLE_RATE)]) == 0
    assert loudness(heard[int(1.6 * SAMPLE_RATE) :]) > 0.1


def test_a_hole_is_silence(tmp_path):
    path = write_audio(tmp_path / "a.mkv", tone(4, SAMPLE_RATE), rate=SAMPLE_RATE, gap=(1.0, 1.0))
    heard = samples(path)
    assert abs(len(heard) / SAMPLE_RATE - 4) < 0.1
    assert loudness(heard[int(1.2 * SAMPLE_RATE) : int(1.8 * SAMPLE_RATE)]) == 0
    assert loudness(heard[int(2.2 * SAMPLE_RATE) :]) > 0.1


def test_a_film_without_sound_says_so(tmp_path):
    with pytest.raises(NoAudioError, match=r"silent\.mp4: it has no audio stream"):
        samples(write_clip(tmp_path / "silent.mp4", frames=3, rate=5))


def test_files_that_cannot_be_heard_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all")
    whole = write_audio(tmp_path / "whole.mp4", tone(20, 16000), rate=16000, codec="aac")
    (tmp_path / "headless.mp4").write_bytes(whole.read_bytes()[:3000])
    for name, reason in (
        ("missing.mp4", "there is no such file"),
        ("empty.mp4", "it is empty"),
        ("text.mp4", "it holds no audio or video"),
        ("headless.mp4", "it holds no audio or video"),
    ):
        with pytest.raises(AudioError, match=rf"{name}: {reason}"):
            samples(tmp_path / name)


def test_a_file_that_breaks_off_is_not_taken_for_whole(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * SAMPLE_RATE).astype(np.float32)
    whole = write_audio(tmp_path / "whole.flac", noise, rate=SAMPLE_RATE, codec="flac")
    cut_off = tmp_path / "cut.flac"
    cut_off.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"truncated: its header gives 20\.0 s, and"):
        samples(cut_off)


@pytest.mark.parametrize("mels", [80, 128])
def test_bands_as_transformers_extracts_them(mels):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    rng = np.random.default_rng(0)
    for length in (201, 16000, 480240):
        # Loud and quiet, so that the range of the whole file matters.
        sound = (rng.normal(size=length) * np.linspace(0.0, 0.3, length)).astype(np.float32)
        # Its numpy code. Its torch code computes in float32, and differs from this by up to 4e-5.
        theirs = extractor._np_extract_fbank_features(sound[None], "cpu")[0].T
        ours = log_mel_spectrogram([sound[at : at + 7000] for at in range(0, length, 7000)], mels)
        np.testing.assert_allclose(ours, theirs[: length // 160], rtol=0, atol=1e-6)


def test_bands_of_next_to_nothing():
    for length in (0, 1, 159):
        assert log_mel_spectrogram([np.zeros(length, np.float32)], 80).shape == (0, 80)
    for length in (160, 200, 320):
        assert np.isfinite(log_mel_spectrogram([np.zeros(length, np.float32)], 80)).all()


def test_bands_as_recorded(shared):
    recorded = golden.load_recording(shared, "15_whisper_tiny_en")["mel"].T
    sound = samples(shared / "media" / "speech" / "librivox_joined.wav")
    bands = log_mel_spectrogram([np.pad(sound, (0, 480000 - len(sound)))], 80)
    np.testing.assert_allclose(bands, recorded, rtol=0, atol=2e-5)  # the rounding of the recording, in float32


def test_voices_begin_and_last_by_two_thresholds():
    def chunks(*parts):
        return [probability for probability, seconds in parts for _ in range(round(seconds / CHUNK_S))]

    ((start, end),) = speech_intervals(chunks((0.0, 2), (0.9, 1), (0.4, 1), (0.9, 1), (0.0, 2)))
    assert start == pytest.approx(1.6, abs=0.1)
    assert end == pytest.approx(5.4, abs=0.1)
    assert len(speech_intervals(chunks((0.9, 1), (0.1, 0.8), (0.9, 1)))) == 1, "a breath"
    assert len(speech_intervals(chunks((0.9, 1), (0.1, 2), (0.9, 1)))) == 2, "a pause"
    assert speech_intervals(chunks((0.0, 1), (0.9, 0.2), (0.0, 1))) == [], "a click"
    assert speech_intervals([]) == []


@pytest.mark.parametrize("kind", ["silence", "noise", "hum", "music"])
def test_what_is_no_voice_is_silent(kind):
    rng = np.random.default_rng(0)
    sound = {
        "silence": np.zeros(10 * SAMPLE_RATE, np.float32),
        "noise": rng.normal(0, 0.1, 10 * SAMPLE_RATE).astype(np.float32),
        "hum": tone(10, SAMPLE_RATE, 50),
        "music": music(10, SAMPLE_RATE),
    }[kind]
    voices = VoiceActivityDetector()
    heard = np.concatenate(list(voices.observe(np.array_split(sound, 77))))
    np.testing.assert_array_equal(heard, sound)
    assert voices.intervals() == []


def test_speech_is_heard_whatever_the_pieces(shared):
    sound = samples(shared / "media" / "speech" / "librivox_joined.wav")
    found = []
    for pieces in (1, 1000):
        voices = VoiceActivityDetector()
        for _ in voices.observe(np.array_split(sound, pieces)):
            pass
        found.append(voices.intervals())
    assert found[0] == found[1]
    assert sum(end - start for start, end in found[0]) > 20


def test_music_on_a_film_is_no_voice(shared):
    voices = VoiceActivityDetector()
    for _ in voices.observe(read_audio(shared / "media" / "video" / "chaplin.mp4")):
        pass
    assert voices.intervals() == []


def step(second):
    return TIME + round(second / 0.02)


def test_segments_meet_where_two_times_stand():
    tokens = [step(0), 1, 2, step(2), step(2.5), 3, step(4), step(4), 4, 5]
    segments, frames = split_segments(tokens, timestamp_begin=TIME, seek=1000, num_frames=3000)
    assert segments == [
        Segment(10.0, 12.0, (step(0), 1, 2, step(2))),
        Segment(12.5, 14.0, (step(2.5), 3, step(4))),
    ]
    assert frames == 400, "what the window's end cut off is left to the next"


def test_a_single_time_at_the_end_finishes_the_window():
    tokens = [step(0), 1, step(2), step(2), 2, step(4)]
    segments, frames = split_segments(tokens, timestamp_begin=TIME, seek=0, num_frames=2000)
    assert [(each.start, each.end) for each in segments] == [(0, 2), (2, 4)]
    assert frames == 2000


def test_a_text_whose_times_never_meet_is_one_segment():
    for tokens, end in (([step(0), 1, 2], 20.0), ([step(0), 1, step(3)], 3.0)):
        segments, frames = split_segments(tokens, timestamp_begin=TIME, seek=500, num_frames=2001)
        assert [(each.start, each.end) for each in segments] == [(5.0, 5.0 + end)]
        assert frames == 2001


def test_a_window_always_moves():
    segments, frames = split_segments([step(0), step(0), 1], timestamp_begin=TIME, seek=0, num_frames=2000)
    assert frames == 2000
    assert [(each.start, each.end) for each in segments] == [(0.0, 0.0)]


def test_repetition_shows_in_the_ratio():
    assert compression_ratio("and again " * 40) > 2.4
    assert compression_ratio("He was not an ill-disposed young man.") < 1.5
    assert compression_ratio("") < 2.4


@pytest.fixture(scope="module")
def tiny(shared):
    return open_whisper(shared / "weights" / "whisper-tiny.en")


def test_a_missing_tensor_is_named(shared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared / "weights" / "whisper-tiny.en", folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SpeechModelError, match=r"model\.safetensors: no such file"):
        open_whisper(folder)
    del tensors["model.decoder.layers.2.fc1.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(SpeechModelError, match=r"model\.decoder\.layers\.2\.fc1\.weight \(1536, 384\): missing"):
        open_whisper(folder)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(SpeechModelError, match=r"model\.safetensors"):
        open_whisper(folder)
    (folder / "generation_config.json").unlink()
    with pytest.raises(SpeechModelError, match=r"generation_config\.json: no such file"):
        open_whisper(folder)


def test_an_unknown_size_is_named():
    for name in ("huge", "large-v3.en"):
        with pytest.raises(SpeechModelError, match=f"{name}: no such folder, and no size of Whisper"):
            open_whisper(name)


def test_options_that_do_not_fit_are_named(tiny):
    with pytest.raises(OptionsError, match=r"language: .* is English-only, got 'de'"):
        Transcriber(tiny, TranscriptionOptions(language="de"))
    with pytest.raises(OptionsError, match="batch_size: must be an int >= 1, got 0"):
        TranscriptionOptions(batch_size=0)
    with pytest.raises(OptionsError, match="temperatures"):
        TranscriptionOptions(temperatures=())


SPEECH = ("librivox_joined.wav", "speech_long.wav")


@pytest.fixture(scope="module")
def theirs(shared):
    """What transformers' torch Whisper writes: start, end and text by file."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    weights = shared / "weights" / "whisper-tiny.en"
    model = transformers.WhisperForConditionalGeneration.from_pretrained(weights, dtype=torch.float32).eval()
    processor = transformers.WhisperProcessor.from_pretrained(weights)
    found = {}
    for quote in (False, True):
        for name in SPEECH:
            bands = processor(
                samples(shared / "media" / "speech" / name),
                sampling_rate=SAMPLE_RATE,
                truncation=False,
                padding="longest",
                return_attention_mask=True,
                return_tensors="pt",
            )
            with torch.no_grad():
                result = model.generate(
                    bands.input_features,
                    attention_mask=bands.attention_mask,
                    return_timestamps=True,
                    return_segments=True,
                    condition_on_prev_tokens=quote,
                    temperature=0.0,
                )
            found[name, quote] = [
                Caption(
                    round(float(each["start"]), 2),
                    round(float(each["end"]), 2),
                    processor.decode(each["tokens"], skip_special_tokens=True).strip(),
                )
                for each in result["segments"][0]
            ]
    return found


def rounded(captions):
    return [Caption(round(each.start, 2), round(each.end, 2), each.text) for each in captions]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{}, {"condition_on_previous_text": True}, {"batch_size": 1, "vad_filter": False}], ids=str
)
def test_text_and_times_as_transformers_writes_them(shared, tiny, theirs, how):
    options = TranscriptionOptions(**({"temperatures": (0.0,), "batch_size": 4} | how))
    transcriber = Transcriber(tiny, options)
    sounds = [(name, transcriber.load_audio(shared / "media" / "speech" / name)) for name in SPEECH]
    ours = {name: rounded(transcript.captions) for name, transcript in transcriber.transcribe(sounds)}
    assert ours == {name: theirs[name, options.condition_on_previous_text] for name in SPEECH}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of its packages are not ours
def test_text_and_times_as_faster_whisper_writes_them(shared, tiny, tmp_path):
    faster_whisper = pytest.importorskip("faster_whisper")
    converters = pytest.importorskip("ctranslate2.converters")
    weights = shared / "weights" / "whisper-tiny.en"
    kept = ["tokenizer.json", "preprocessor_config.json"]
    converters.TransformersConverter(str(weights), copy_files=kept).convert(str(tmp_path / "converted"))
    model = faster_whisper.WhisperModel(str(tmp_path / "converted"), device="cpu", compute_type="float32")
    transcriber = Transcriber(tiny, TranscriptionOptions(temperatures=(0.0,), batch_size=4))
    files = {name: shared / "media" / "speech" / name for name in SPEECH}
    sounds = [(name, transcriber.load_audio(path)) for name, path in files.items()]
    for name, transcript in transcriber.transcribe(sounds):
        segments, _ = model.transcribe(
            samples(files[name]), beam_size=1, temperature=0.0, condition_on_previous_text=False, language="en"
        )
        theirs = [Caption(each.start, each.end, each.text.strip()) for each in segments]
        assert rounded(transcript.captions) == rounded(theirs), name


class Told(Transcriber):
    """A transcriber whose device is told what to answer: (tokens, log-probability, no speech) by temperature."""

    def __init__(self, model, options, answers):
        super().__init__(model, options)
        self.answers, self.asked = answers, []

    def _decode_windows(self, files):
        temperatures = [self.options.temperatures[file.temperature_index] for file in files]
        self.asked += [(file.name, file.seek, t) for file, t in zip(files, temperatures, strict=True)]
        return [self.answers[temperature] for temperature in temperatures]


def told(tiny, answers, seconds=40.0, voices=None, **how):
    transcriber = Told(
        tiny, TranscriptionOptions(**({"temperatures": (0.0, 0.4, 1.0), "batch_size": 4} | how)), answers
    )
    sound = AudioFeatures(np.zeros((round(seconds * 100), 80), np.float32), voices)
    ((_, transcript),) = transcriber.transcribe([("a", sound)])
    return transcript, [(seek, temperature) for _, seek, temperature in transcriber.asked]


def text(tiny, words, start=0.0, end=5.0):
    time = tiny.special_tokens.timestamp_begin
    return [time + round(start * 50), *tiny.tokenizer.encode(words, add_special_tokens=False), time + round(end * 50)]


def test_an_improbable_or_repetitive_text_is_tried_warmer(tiny):
    good, again = text(tiny, " A good text."), text(tiny, " again and again" * 30)
    transcript, asked = told(tiny, {0.0: (good, -1.5, 0.1), 0.4: (again, -0.1, 0.1), 1.0: (good, -9.0, 0.1)}, 20.0)
    assert asked == [(0, 0.0), (0, 0.4), (0, 1.0)]
    assert [caption.text for caption in transcript.captions] == ["A good text."]
    _, asked = told(tiny, {0.0: (good, -0.5, 0.9)}, 20.0)
    assert asked == [(0, 0.0)], "a probable text is kept, however silent it is"


def test_an_improbable_text_in_silence_is_dropped(tiny):
    transcript, asked = told(tiny, {0.0: (text(tiny, " Thank you."), -1.5, 0.7)})
    assert transcript.captions == []
    assert asked == [(0, 0.0), (3000, 0.0)]


def test_silence_is_jumped_over_and_what_is_said_in_it_dropped(tiny):
    answer = {0.0: (text(tiny, " A good text.", 0.0, 4.0), -0.1, 0.1)}
    transcript, asked = told(tiny, answer, 200.0, voices=[(50.0, 55.0), (120.0, 121.0)])
    assert asked == [(5000, 0.0), (12000, 0.0)]
    assert [(caption.start, caption.end) for caption in transcript.captions] == [(50.0, 54.0), (120.0, 124.0)]
    assert told(tiny, answer, 200.0, voices=[])[1] == []
    # The segment lies in the second before anybody speaks.
    late = {0.0: (text(tiny, " Thank you.", 0.0, 1.0), -0.1, 0.1)}
    assert told(tiny, late, 20.0, voices=[(2.0, 5.0)])[0].captions == []


def test_windows_of_many_files_share_batches(tiny):
    answers = {0.0: (text(tiny, " A good text."), -0.1, 0.1)}
    transcriber = Told(tiny, TranscriptionOptions(batch_size=4), answers)
    lengths = {"a": 25.0, "b": 95.0, "c": 31.0, "d": 0.0, "e": 61.0, "f": 10.0}
    drawn = []

    def sounds():
        for name, seconds in lengths.items():
            drawn.append(name)
            yield name, AudioFeatures(np.zeros((round(seconds * 100), 80), np.float32), None)

    finished = {name: transcript.seconds for name, transcript in transcriber.transcribe(sounds())}
    assert finished == lengths
    windows = [(name, seek) for name, seek, _ in transcriber.asked]
    assert sorted(windows) == sorted(
        (name, seek) for name, seconds in lengths.items() for seek in range(0, round(seconds * 100), 3000)
    )
    assert windows[:4] == [("a", 0), ("b", 0), ("c", 0), ("e", 0)], "a full batch, whichever files they are of"
    assert drawn == list(lengths)
