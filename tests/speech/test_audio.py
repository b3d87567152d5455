"""Audio decoding, mel spectrograms, and voice activity detection."""

import av
import numpy as np
import pytest

from calce_jax.speech.audio import SAMPLE_RATE, AudioError, NoAudioError, read_audio
from calce_jax.speech.mel import log_mel_spectrogram
from calce_jax.speech.vad import CHUNK_S, VoiceActivityDetector, speech_intervals
from tests.helpers import recordings_io
from tests.helpers.audio_files import music, tone, write_audio
from tests.helpers.video_files import write_clip


def samples(path):
    return np.concatenate(list(read_audio(path)))


def rms(sound):
    return np.sqrt(np.square(sound).mean())


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_resampling_to_16_khz(tmp_path, rate):
    decoded = samples(write_audio(tmp_path / "a.wav", tone(2, rate), rate=rate))
    assert abs(len(decoded) - 2 * SAMPLE_RATE) <= 16
    np.testing.assert_allclose(decoded[1000:-1000], tone(2, SAMPLE_RATE)[1000 : len(decoded) - 1000], atol=2e-3)


def test_samples_at_16_khz_are_unchanged(tmp_path):
    sound = tone(1, SAMPLE_RATE)
    decoded = samples(write_audio(tmp_path / "a.wav", sound, rate=SAMPLE_RATE))
    np.testing.assert_allclose(decoded, sound, atol=2**-15)


def decoded_by_faster_whisper(path):
    """Decode as faster-whisper 1.2.1 does: FFmpeg resamples to 16 bits, mono."""
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    with av.open(path) as container:
        frames = [*container.decode(audio=0), None]
        pieces = [piece.to_ndarray()[0] for frame in frames for piece in resampler.resample(frame)]
    return np.concatenate(pieces).astype(np.float32) / np.float32(2**15)


@pytest.mark.parametrize(("rate", "layout"), [(8000, "mono"), (16000, "stereo"), (44100, "stereo")])
def test_samples_have_16_bits_like_those_of_other_programs(tmp_path, rate, layout):
    """At 8 kHz the upper mel bands are empty, but for the rounding."""
    channels = np.random.default_rng(0).normal(scale=2e-3, size=(len(layout) // 3, rate)).astype(np.float32)
    path = write_audio(tmp_path / "a.wav", channels, rate=rate, layout=layout)
    expected = decoded_by_faster_whisper(path)
    np.testing.assert_array_equal(samples(path), expected)
    bands = [log_mel_spectrogram([sound], 80) for sound in (samples(path), expected)]
    np.testing.assert_array_equal(*bands)


def test_sound_too_loud_for_16_bits_is_clipped(tmp_path):
    decoded = samples(
        write_audio(tmp_path / "a.mkv", tone(1, SAMPLE_RATE, loudness=1.5), rate=SAMPLE_RATE, codec="pcm_f32le")
    )
    assert (decoded.min(), decoded.max()) == (-1, 1 - 2**-15)


def test_centre_channel_of_5_1(tmp_path):
    # FFmpeg's order: left, right, centre, bass, left and right behind.
    channels = np.zeros((6, 48000), np.float32)
    channels[2] = tone(1, 48000)
    decoded = samples(write_audio(tmp_path / "a.wav", channels, rate=48000, layout="5.1"))
    assert abs(len(decoded) - SAMPLE_RATE) <= 16
    assert rms(decoded) > 0.05
    both = np.stack([tone(1, 48000), tone(1, 48000)])
    assert rms(samples(write_audio(tmp_path / "b.wav", both, rate=48000, layout="stereo"))) > 0.1


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mp4", "aac"), (".mkv", "libopus"), (".mp3", "libmp3lame"), (".flac", "flac")]
)
def test_containers_and_codecs(tmp_path, suffix, codec):
    decoded = samples(write_audio(tmp_path / f"a{suffix}", tone(2, 48000), rate=48000, codec=codec))
    assert abs(len(decoded) / SAMPLE_RATE - 2) < 0.1
    assert rms(decoded) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_late_audio_is_padded(tmp_path):
    path = write_audio(tmp_path / "a.mkv", tone(2, SAMPLE_RATE), rate=SAMPLE_RATE, start_second=1.5, pictures=4)
    decoded = samples(path)
    assert abs(len(decoded) / SAMPLE_RATE - 3.5) < 0.05
    assert rms(decoded[: int(1.4 * SAMPLE_RATE)]) == 0
    assert rms(decoded[int(1.6 * SAMPLE_RATE) :]) > 0.1


def test_gap_is_padded(tmp_path):
    path = write_audio(tmp_path / "a.mkv", tone(4, SAMPLE_RATE), rate=SAMPLE_RATE, gap=(1.0, 1.0))
    decoded = samples(path)
    assert abs(len(decoded) / SAMPLE_RATE - 4) < 0.1
    assert rms(decoded[int(1.2 * SAMPLE_RATE) : int(1.8 * SAMPLE_RATE)]) == 0
    assert rms(decoded[int(2.2 * SAMPLE_RATE) :]) > 0.1


def test_video_without_audio(tmp_path):
    with pytest.raises(NoAudioError, match=r"silent\.mp4: it has no audio stream"):
        samples(write_clip(tmp_path / "silent.mp4", frames=3, rate=5))


def test_files_that_cannot_be_decoded(tmp_path):
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


def test_truncated_audio(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 20 * SAMPLE_RATE).astype(np.float32)
    whole = write_audio(tmp_path / "whole.flac", noise, rate=SAMPLE_RATE, codec="flac")
    cut_off = tmp_path / "cut.flac"
    cut_off.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"truncated: its header gives 20\.0 s, and"):
        samples(cut_off)


@pytest.mark.parametrize("mels", [80, 128])
def test_mel_equals_transformers(mels):
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    rng = np.random.default_rng(0)
    for length in (201, 16000, 480240):
        # The volume rises, so that the scaling by the whole file matters.
        sound = (rng.normal(size=length) * np.linspace(0.0, 0.3, length)).astype(np.float32)
        # The numpy implementation; the one in torch computes in float32 and differs by up to 4e-5.
        expected = extractor._np_extract_fbank_features(sound[None], "cpu")[0].T
        mel = log_mel_spectrogram([sound[at : at + 7000] for at in range(0, length, 7000)], mels)
        np.testing.assert_allclose(mel, expected[: length // 160], rtol=0, atol=1e-6)


def test_mel_of_very_short_audio():
    for length in (0, 1, 159):
        assert log_mel_spectrogram([np.zeros(length, np.float32)], 80).shape == (0, 80)
    for length in (160, 200, 320):
        assert np.isfinite(log_mel_spectrogram([np.zeros(length, np.float32)], 80)).all()


def test_mel_as_recorded(shared):
    recorded = recordings_io.load_recording(shared, "15_whisper_tiny_en")["mel"].T
    sound = samples(shared / "media" / "speech" / "librivox_joined.wav")
    bands = log_mel_spectrogram([np.pad(sound, (0, 480000 - len(sound)))], 80)
    np.testing.assert_allclose(bands, recorded, rtol=0, atol=2e-5)  # the recording was computed in float32


def test_speech_intervals():
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
def test_no_speech_in_other_sounds(kind):
    rng = np.random.default_rng(0)
    sound = {
        "silence": np.zeros(10 * SAMPLE_RATE, np.float32),
        "noise": rng.normal(0, 0.1, 10 * SAMPLE_RATE).astype(np.float32),
        "hum": tone(10, SAMPLE_RATE, 50),
        "music": music(10, SAMPLE_RATE),
    }[kind]
    detector = VoiceActivityDetector()
    decoded = np.concatenate(list(detector.observe(np.array_split(sound, 77))))
    np.testing.assert_array_equal(decoded, sound)
    assert detector.intervals() == []


def test_speech_intervals_do_not_depend_on_chunks(shared):
    sound = samples(shared / "media" / "speech" / "librivox_joined.wav")
    intervals = []
    for pieces in (1, 1000):
        detector = VoiceActivityDetector()
        for _ in detector.observe(np.array_split(sound, pieces)):
            pass
        intervals.append(detector.intervals())
    assert intervals[0] == intervals[1]
    assert sum(end - start for start, end in intervals[0]) > 20


def test_no_speech_in_the_music_of_a_film(shared):
    detector = VoiceActivityDetector()
    for _ in detector.observe(read_audio(shared / "media" / "video" / "chaplin.mp4")):
        pass
    assert detector.intervals() == []


@pytest.mark.parametrize("second", [-1.0, -0.8, 0.0, 1.0])
def test_channels_of_opposite_sign_do_not_cancel(tmp_path, second):
    left = tone(2, 48000)
    path = write_audio(tmp_path / "a.wav", np.stack([left, second * left]), rate=48000, layout="stereo")
    # The mean of the channels, or where that is nearly silent the mean of one and the inverted other.
    gain = (1 + abs(second)) / 2
    assert rms(samples(path)) == pytest.approx(gain * 0.3 / np.sqrt(2), rel=0.05)


def test_channels_with_different_sounds_are_mixed(tmp_path):
    both = np.stack([tone(2, 48000), tone(2, 48000, hertz=1000)])
    decoded = samples(write_audio(tmp_path / "a.wav", both, rate=48000, layout="stereo"))
    expected = (tone(2, SAMPLE_RATE) + tone(2, SAMPLE_RATE, hertz=1000)) / 2
    np.testing.assert_allclose(decoded[1000:-1000], expected[1000:-1000], atol=5e-3)
