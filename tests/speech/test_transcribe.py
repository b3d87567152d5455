"""Segments, and the transcription of files with Whisper."""

import shutil
from functools import cache

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calce_jax.speech.audio import SAMPLE_RATE, read_audio
from calce_jax.speech.inputs import SpeechModelError
from calce_jax.speech.options import OptionsError, TranscriptionOptions
from calce_jax.speech.segments import Segment, compression_ratio, split_segments
from calce_jax.speech.transcribe import AudioFeatures, Transcriber
from calce_jax.speech.whisper_model import open_whisper
from calce_jax.text.caption import Caption
from tests.helpers.oracle import oracle

TIMESTAMP_BEGIN = 100


def samples(path):
    return np.concatenate(list(read_audio(path)))


def step(second):
    return TIMESTAMP_BEGIN + round(second / 0.02)


def test_segments_end_at_timestamp_pairs():
    tokens = [step(0), 1, 2, step(2), step(2.5), 3, step(4), step(4), 4, 5]
    segments, frames = split_segments(tokens, timestamp_begin=TIMESTAMP_BEGIN, seek=1000, num_frames=3000)
    assert segments == [
        Segment(10.0, 12.0, (step(0), 1, 2, step(2))),
        Segment(12.5, 14.0, (step(2.5), 3, step(4))),
    ]
    assert frames == 400, "tokens after the last pair are left to the next window"


def test_single_timestamp_at_the_end():
    tokens = [step(0), 1, step(2), step(2), 2, step(4)]
    segments, frames = split_segments(tokens, timestamp_begin=TIMESTAMP_BEGIN, seek=0, num_frames=2000)
    assert [(segment.start, segment.end) for segment in segments] == [(0, 2), (2, 4)]
    assert frames == 2000


def test_text_without_timestamp_pairs_is_one_segment():
    for tokens, end in (([step(0), 1, 2], 20.0), ([step(0), 1, step(3)], 3.0)):
        segments, frames = split_segments(tokens, timestamp_begin=TIMESTAMP_BEGIN, seek=500, num_frames=2001)
        assert [(segment.start, segment.end) for segment in segments] == [(5.0, 5.0 + end)]
        assert frames == 2001


def test_window_always_advances():
    segments, frames = split_segments([step(0), step(0), 1], timestamp_begin=TIMESTAMP_BEGIN, seek=0, num_frames=2000)
    assert frames == 2000
    assert [(segment.start, segment.end) for segment in segments] == [(0.0, 0.0)]


def test_compression_ratio_of_repetition():
    assert compression_ratio("and again " * 40) > 2.4
    assert compression_ratio("He was not an ill-disposed young man.") < 1.5
    assert compression_ratio("") < 2.4


@pytest.fixture(scope="module")
def tiny(shared):
    return open_whisper(shared / "weights" / "whisper-tiny.en")


@pytest.mark.slow
def test_damaged_models(shared, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(shared / "weights" / "whisper-tiny.en", folder)
    tensors = load_file(folder / "model.safetensors")
    config = folder / "config.json"
    config.chmod(0o644)
    config.write_bytes("\ufeff".encode() + config.read_bytes())  # a byte order mark is no damage
    for name in ("tokenizer.json", "vocab.json"):
        (folder / name).rename(tmp_path / name) if (folder / name).exists() else None
    with pytest.raises(SpeechModelError, match=r"tokenizer\.json: no such file; copy that of the model from which"):
        open_whisper(folder)
    shutil.move(tmp_path / "tokenizer.json", folder)
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


def test_unknown_size():
    for name in ("huge", "large-v3.en"):
        with pytest.raises(SpeechModelError, match=f"{name}: no such folder, and no size of Whisper"):
            open_whisper(name)


def test_invalid_options(tiny):
    with pytest.raises(OptionsError, match=r"language: .* is English-only, got 'de'"):
        Transcriber(tiny, TranscriptionOptions(language="de"))
    for name in ("en", "English", "ENGLISH", "eng", "en-GB"):
        Transcriber(tiny, TranscriptionOptions(language=name))
    with pytest.raises(OptionsError, match="batch_size: must be an int >= 1, got 0"):
        TranscriptionOptions(batch_size=0)
    with pytest.raises(OptionsError, match="temperatures"):
        TranscriptionOptions(temperatures=())


SPEECH = ("librivox_joined.wav", "speech_long.wav")


@cache
def transformers_captions(shared):
    """Return captions of transformers' Whisper, as three arrays for each file and condition_on_previous_text."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    weights = shared / "weights" / "whisper-tiny.en"
    model = transformers.WhisperForConditionalGeneration.from_pretrained(weights, dtype=torch.float32).eval()
    processor = transformers.WhisperProcessor.from_pretrained(weights)
    captions = {}
    for condition in (False, True):
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
                    condition_on_prev_tokens=condition,
                    temperature=0.0,
                )
            segments = result["segments"][0]
            captions |= {
                f"{name} {condition} start": [round(float(segment["start"]), 2) for segment in segments],
                f"{name} {condition} end": [round(float(segment["end"]), 2) for segment in segments],
                f"{name} {condition} text": [
                    processor.decode(segment["tokens"], skip_special_tokens=True).strip() for segment in segments
                ],
            }
    return captions


def rounded(captions):
    return [Caption(round(caption.start, 2), round(caption.end, 2), caption.text) for caption in captions]


@pytest.mark.release
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"batch_size": 1}, SPEECH[:1]),
        ({}, SPEECH),
        ({"batch_size": 1, "vad_filter": False}, SPEECH[:1]),
        ({"condition_on_previous_text": True}, SPEECH),
        ({"batch_size": 1, "vad_filter": False}, SPEECH[1:]),
    ],
    ids=str,
)
def test_captions_equal_transformers(shared, tiny, options, names):
    recorded = oracle("whisper_captions", lambda: transformers_captions(shared))
    options = TranscriptionOptions(**({"temperatures": (0.0,), "batch_size": 4} | options))
    transcriber = Transcriber(tiny, options)
    sounds = [(name, transcriber.load_audio(shared / "media" / "speech" / name)) for name in names]
    captions = {name: rounded(transcript.captions) for name, transcript in transcriber.transcribe(sounds)}
    for name in names:
        start, end, text = (
            recorded[f"{name} {options.condition_on_previous_text} {part}"].tolist()
            for part in ("start", "end", "text")
        )
        assert captions[name] == list(map(Caption, start, end, text))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of faster-whisper's dependencies
def test_captions_equal_faster_whisper(shared, tiny, tmp_path):
    faster_whisper = pytest.importorskip("faster_whisper")
    converters = pytest.importorskip("ctranslate2.converters")
    weights = shared / "weights" / "whisper-tiny.en"
    copied_files = ["tokenizer.json", "preprocessor_config.json"]
    converters.TransformersConverter(str(weights), copy_files=copied_files).convert(str(tmp_path / "converted"))
    model = faster_whisper.WhisperModel(str(tmp_path / "converted"), device="cpu", compute_type="float32")
    transcriber = Transcriber(tiny, TranscriptionOptions(temperatures=(0.0,), batch_size=4))
    files = {name: shared / "media" / "speech" / name for name in SPEECH}
    sounds = [(name, transcriber.load_audio(path)) for name, path in files.items()]
    for name, transcript in transcriber.transcribe(sounds):
        segments, _ = model.transcribe(
            samples(files[name]), beam_size=1, temperature=0.0, condition_on_previous_text=False, language="en"
        )
        expected = [Caption(segment.start, segment.end, segment.text.strip()) for segment in segments]
        assert rounded(transcript.captions) == rounded(expected), name


class StubTranscriber(Transcriber):
    """A transcriber with fixed decodings: (tokens, log-probability, no-speech probability) by temperature."""

    def __init__(self, model, options, answers):
        super().__init__(model, options)
        self.answers, self.decoded_windows = answers, []

    def _decode_windows(self, files):
        temperatures = [self.options.temperatures[file.temperature_index] for file in files]
        self.decoded_windows += [(file.name, file.seek, t) for file, t in zip(files, temperatures, strict=True)]
        return [self.answers[temperature] for temperature in temperatures]


def transcribe_stub(tiny, answers, seconds=40.0, speech_intervals=None):
    """Return the transcript of silence, and the (seek, temperature) of the decoded windows."""
    transcriber = StubTranscriber(tiny, TranscriptionOptions(temperatures=(0.0, 0.4, 1.0), batch_size=4), answers)
    sound = AudioFeatures(np.zeros((round(seconds * 100), 80), np.float32), speech_intervals)
    ((_, transcript),) = transcriber.transcribe([("a", sound)])
    return transcript, [(seek, temperature) for _, seek, temperature in transcriber.decoded_windows]


def text(tiny, words, start=0.0, end=5.0):
    """Return the tokens of words between two timestamps."""
    begin = tiny.special_tokens.timestamp_begin
    return [begin + round(start * 50), *tiny.tokenizer.encode(words, add_special_tokens=False), begin + round(end * 50)]


def test_temperature_fallback(tiny):
    good, again = text(tiny, " A good text."), text(tiny, " again and again" * 30)
    transcript, windows = transcribe_stub(
        tiny, {0.0: (good, -1.5, 0.1), 0.4: (again, -0.1, 0.1), 1.0: (good, -9.0, 0.1)}, 20.0
    )
    assert windows == [(0, 0.0), (0, 0.4), (0, 1.0)]
    assert [caption.text for caption in transcript.captions] == ["A good text."]
    _, windows = transcribe_stub(tiny, {0.0: (good, -0.5, 0.9)}, 20.0)
    assert windows == [(0, 0.0)], "a probable text is kept despite its no-speech probability"


def test_improbable_text_without_speech_is_dropped(tiny):
    transcript, windows = transcribe_stub(tiny, {0.0: (text(tiny, " Thank you."), -1.5, 0.7)})
    assert transcript.captions == []
    assert windows == [(0, 0.0), (3000, 0.0)]


def test_silence_is_skipped_and_segments_in_it_are_dropped(tiny):
    answer = {0.0: (text(tiny, " A good text.", 0.0, 4.0), -0.1, 0.1)}
    transcript, windows = transcribe_stub(tiny, answer, 200.0, speech_intervals=[(50.0, 55.0), (120.0, 121.0)])
    assert windows == [(5000, 0.0), (12000, 0.0)]
    assert [(caption.start, caption.end) for caption in transcript.captions] == [(50.0, 54.0), (120.0, 124.0)]
    assert transcribe_stub(tiny, answer, 200.0, speech_intervals=[])[1] == []
    # The segment ends before the speech.
    late = {0.0: (text(tiny, " Thank you.", 0.0, 1.0), -0.1, 0.1)}
    assert transcribe_stub(tiny, late, 20.0, speech_intervals=[(2.0, 5.0)])[0].captions == []


def test_windows_of_many_files_share_batches(tiny):
    answers = {0.0: (text(tiny, " A good text."), -0.1, 0.1)}
    transcriber = StubTranscriber(tiny, TranscriptionOptions(batch_size=4), answers)
    lengths = {"a": 25.0, "b": 95.0, "c": 31.0, "d": 0.0, "e": 61.0, "f": 10.0}
    drawn = []

    def sounds():
        for name, seconds in lengths.items():
            drawn.append(name)
            yield name, AudioFeatures(np.zeros((round(seconds * 100), 80), np.float32), None)

    finished = {name: transcript.seconds for name, transcript in transcriber.transcribe(sounds())}
    assert finished == lengths
    windows = [(name, seek) for name, seek, _ in transcriber.decoded_windows]
    assert sorted(windows) == sorted(
        (name, seek) for name, seconds in lengths.items() for seek in range(0, round(seconds * 100), 3000)
    )
    assert windows[:4] == [("a", 0), ("b", 0), ("c", 0), ("e", 0)], "a full batch of windows of different files"
    assert drawn == list(lengths)
