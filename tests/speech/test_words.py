"""Words with times, hot words, and captions in lines: of recordings, and of stubs."""

import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from calce_jax.models.whisper import WhisperConfig
from calce_jax.speech.alignment import (
    align_batch,
    dynamic_time_warping,
    first_positions,
    median_filter,
    normalise_weights,
    pack_texts,
)
from calce_jax.speech.audio import SAMPLE_RATE
from calce_jax.speech.captioning import format_json, transcribe_file
from calce_jax.speech.options import OptionsError, TranscriptionOptions
from calce_jax.speech.segments import Segment
from calce_jax.speech.transcribe import AudioFeatures, Transcriber, Transcript
from calce_jax.speech.whisper_model import open_whisper, read_alignment_heads
from calce_jax.speech.words import TimedWord, add_words, split_words, time_words
from calce_jax.text.caption import Caption, Word
from tests.helpers.oracle import oracle

SPEECH = ("jfk.flac", "speech_long.wav")
# What is said first in librivox_joined.wav.
TEXT = " And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do."


@pytest.fixture(scope="module")
def tiny(shared):
    return open_whisper(shared / "weights" / "whisper-tiny.en")


def transcribe(model, shared, names, **options):
    transcriber = Transcriber(model, TranscriptionOptions(**({"temperatures": (0.0,), "batch_size": 1} | options)))
    sounds = [(name, transcriber.load_audio(shared / "media" / "speech" / name)) for name in names]
    return dict(transcriber.transcribe(sounds))


# Names of the parameters of openai-whisper, from those of transformers, replaced one after the other.
OPENAI_NAMES = {
    "model.": "",
    "coder.layers": "coder.blocks",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn": "cross_attn",
    "self_attn": "attn",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "out_proj": "out",
    "encoder.layer_norm": "encoder.ln_post",
    "decoder.layer_norm": "decoder.ln",
    "embed_tokens": "token_embedding",
    "embed_positions.weight": "positional_embedding",
}


def openai_words(shared, model):
    """Return the words that openai-whisper's `add_word_timestamps` gives the segments of our windows."""
    import torch  # noqa: PLC0415
    from whisper.model import ModelDimensions, Whisper  # noqa: PLC0415
    from whisper.timing import add_word_timestamps  # noqa: PLC0415
    from whisper.tokenizer import get_tokenizer  # noqa: PLC0415

    tensors = {}
    for name, tensor in load_file(shared / "weights" / "whisper-tiny.en" / "model.safetensors").items():
        for old, new in OPENAI_NAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901
        tensors[name] = torch.from_numpy(tensor)
    tensors.pop("proj_out.weight", None)
    openai = Whisper(ModelDimensions(80, 1500, 384, 6, 4, 51864, 448, 384, 6, 4)).eval()
    openai.load_state_dict(tensors)
    heads = torch.zeros(4, 6, dtype=torch.bool)
    for block, head in model.alignment_heads:
        heads[block, head] = True
    openai.register_buffer("alignment_heads", heads.to_sparse(), persistent=False)
    segments_by_file: dict[str, list] = {}

    class Aligned(Transcriber):
        def _accept_or_retry(self, file, *output):
            window = super()._accept_or_retry(file, *output)
            aligned = segments_by_file.setdefault(file.name, [])
            words = [word for segment in aligned for word in segment["words"]]
            segments = [vars(segment) | {"seek": file.seek} for segment in window.segments]
            add_word_timestamps(
                segments=segments,
                model=openai,
                tokenizer=get_tokenizer(multilingual=False),
                mel=torch.from_numpy(self._mel_windows([file], 1)[0].T.copy()),
                num_frames=self._num_frames(file),
                last_speech_timestamp=words[-1]["end"] if words else 0.0,
            )
            aligned += segments
            return window

    transcriber = Aligned(model, TranscriptionOptions(temperatures=(0.0,), batch_size=1))
    for name in SPEECH:
        dict(transcriber.transcribe([(name, transcriber.load_audio(shared / "media" / "speech" / name))]))
    arrays = {}
    for name, segments in segments_by_file.items():
        words = [word for segment in segments for word in segment["words"]]
        arrays |= {f"{name} {key}": [word[key] for word in words] for key in ("word", "start", "end", "probability")}
    return arrays


@pytest.mark.release
@pytest.mark.parametrize("names", [SPEECH[:1], SPEECH], ids=str)
@pytest.mark.filterwarnings("ignore")  # of openai-whisper's dependencies
def test_words_equal_openai_whisper(shared, tiny, names):
    recorded = oracle("whisper_words", lambda: openai_words(shared, tiny), package="whisper")
    options = {"word_timestamps": True, "batch_size": len(names)}
    for name, transcript in transcribe(tiny, shared, names, **options).items():
        words = [word for caption in transcript.captions for word in caption.words]
        assert [word.word for word in words] == recorded[f"{name} word"].tolist()
        for key in ("start", "end"):
            ours = [getattr(word, key) for word in words]
            np.testing.assert_allclose(ours, recorded[f"{name} {key}"], rtol=0, atol=1e-6)
        ours = [word.probability for word in words]
        np.testing.assert_allclose(ours, recorded[f"{name} probability"], rtol=0, atol=2e-4)
        for caption in transcript.captions:
            assert (caption.start, caption.end) == (caption.words[0].start, caption.words[-1].end)
            assert "".join(word.word for word in caption.words).strip() == caption.text


@cache
def transformers_alignment(shared, tokens, num_positions):
    """Return first positions and words, by transformers' attention, filter, time warping and words."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from transformers.models.whisper import generation_whisper, tokenization_whisper  # noqa: PLC0415

    weights = shared / "weights" / "whisper-tiny.en"
    model = transformers.WhisperForConditionalGeneration.from_pretrained(
        weights, attn_implementation="eager", dtype=torch.float32
    ).eval()
    mel = first_window(Transcriber(open_whisper(weights), TranscriptionOptions(vad_filter=False)), shared)
    with torch.no_grad():
        attention = model(
            input_features=torch.from_numpy(mel.T.copy())[None],
            decoder_input_ids=torch.tensor([tokens]),
            output_attentions=True,
        ).cross_attentions
    heads = model.generation_config.alignment_heads
    matrix = torch.stack([attention[block][0, head] for block, head in heads])[..., :num_positions]
    matrix = matrix / matrix.sum(-1, keepdim=True)
    deviation, mean = torch.std_mean(matrix, dim=-2, keepdim=True, unbiased=False)
    filtered = generation_whisper._median_filter((matrix - mean) / deviation, 7).mean(0)[1:-1]
    rows, positions = generation_whisper._dynamic_time_warping(-filtered.double().numpy())
    tokenizer = transformers.WhisperTokenizer.from_pretrained(weights)
    words, _, _ = tokenization_whisper._combine_tokens_into_words(tokenizer, list(tokens[2:-1]), "english")
    return {
        "positions": positions[np.diff(rows, prepend=-1) > 0],
        "likelihood": filtered[:, ::25].numpy(),
        "words": words,
    }


def first_window(transcriber, shared):
    """Return the first 7 s of mel bands, with zeros up to 30 s."""
    mel = transcriber.load_audio(shared / "media" / "speech" / "librivox_joined.wav").mel[:700]
    return np.pad(mel, ((0, 2300), (0, 0)))


@pytest.mark.slow
def test_alignment_equals_transformers(shared, tiny):
    prompt, text = (
        [tiny.special_tokens.sot, tiny.special_tokens.no_timestamps],
        tiny.tokenizer.encode(TEXT, add_special_tokens=False),
    )
    tokens = (*prompt, *text, tiny.special_tokens.eot)
    recorded = oracle("whisper_alignment", lambda: transformers_alignment(shared, tokens, 350))
    mel = first_window(Transcriber(tiny, TranscriptionOptions(vad_filter=False)), shared)
    inputs = pack_texts(mel[None], [700], [prompt], [text], eot=tiny.special_tokens.eot, max_tokens=448)
    assert inputs.tokens.shape == (1, 64)
    graph, params = nnx.split(tiny.whisper)
    outputs = jax.jit(
        lambda params, inputs: align_batch(
            nnx.merge(graph, params),
            inputs,
            tiny.alignment_heads,
            num_text_tokens=tiny.special_tokens.eot,
            dtype="float32",
        )
    )(params, inputs)
    likelihood = np.asarray(outputs.likelihood)[0, 1 : 2 + len(text), :350]
    np.testing.assert_allclose(likelihood[:, ::25], recorded["likelihood"], rtol=0, atol=2e-3)
    positions = first_positions(likelihood)
    np.testing.assert_array_equal(positions, recorded["positions"])
    words = split_words(text, tiny.decode_text, "en")
    time_words(words, positions, np.ones(len(text) + 1))
    assert [word.text for word in words if word.text] == recorded["words"].tolist()


def slow_time_warping(cost):
    """Dynamic time warping as it is defined, cell by cell."""
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf, np.float32)
    total[0, 0] = 0
    step = np.zeros(total.shape, int)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            both, down, along = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            step[i, j] = 0 if both < min(down, along) else 1 if down < min(both, along) else 2
            total[i, j] = cost[i - 1, j - 1] + (both, down, along)[step[i, j]]
    path = [(rows, columns)]
    while path[-1] != (1, 1):
        i, j = path[-1]
        taken = 2 if i == 1 else 1 if j == 1 else step[i, j]
        path.append((i - (taken < 2), j - (taken != 1)))
    return np.array(path[::-1]).T - 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 30), (12, 8)])
def test_time_warping_takes_the_cheapest_path(shape):
    rng = np.random.default_rng(0)
    for cost in (rng.normal(size=shape), rng.integers(-2, 3, shape)):  # whole numbers have ties
        rows, columns = dynamic_time_warping(cost.astype(np.float32))
        expected = slow_time_warping(cost.astype(np.float32))
        np.testing.assert_array_equal([rows, columns], expected)


@pytest.mark.parametrize("num_positions", [1, 3, 4, 7, 20])
def test_the_median_is_reflected_at_the_end_of_the_file(num_positions):
    weights = np.random.default_rng(0).normal(size=(2, 3, 20)).astype(np.float32)
    ours = np.asarray(median_filter(jnp.asarray(weights), jnp.asarray(num_positions)))[..., :num_positions]
    expected = weights[..., :num_positions]
    if num_positions > 3:
        padded = np.pad(expected, ((0, 0), (0, 0), (3, 3)), mode="reflect")
        expected = np.median(np.lib.stride_tricks.sliding_window_view(padded, 7, axis=2), axis=-1)
    np.testing.assert_array_equal(ours, expected)


def test_padding_does_not_change_normalised_weights():
    weights = np.random.default_rng(0).random((2, 6, 10)).astype(np.float32)
    ours = normalise_weights(jnp.asarray(weights), jnp.arange(6) < 4, jnp.arange(10) < 7)
    kept = weights[:, :4, :7] / weights[:, :4, :7].sum(axis=-1, keepdims=True)
    expected = (kept - kept.mean(axis=1, keepdims=True)) / kept.std(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(ours)[:, :4, :7], expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(ours)[:, 4:].any()
    assert not np.asarray(ours)[..., 7:].any()


def test_tokens_become_words(tiny):
    def words(text, language="en"):
        return [
            word.text
            for word in split_words(tiny.tokenizer.encode(text, add_special_tokens=False), tiny.decode_text, language)
        ]

    assert words(" He said (loudly), yes.") == [" He", " said", " (loudly),", " yes", "."]
    assert words("今天好。", "zh") == ["今", "天", "好", "。"]
    assert "".join(words(" naïve café 🙂 done")) == " naïve café 🙂 done"
    half = tiny.tokenizer.encode("🙂", add_special_tokens=False)[:1]
    assert [word.tokens for word in split_words(half, tiny.decode_text, "en")] == [half], "no token is lost"


def timed(*words):
    """Return words of one token each, from (text, first position)."""
    return [TimedWord(text, [number]) for number, (text, _) in enumerate(words)]


def test_punctuation_is_merged_and_long_pauses_at_sentences_are_cut():
    spoken = [(" “", 0), (" Ask", 5), (",", 30), (" not", 32), (".", 50), (" What", 300), (" now", 320)]
    words = timed(*spoken)
    median = time_words(words, np.array([position for _, position in spoken] + [340]), np.arange(8) / 10)
    assert [word.text for word in words] == ["", " “ Ask,", "", " not.", "", " What", " now"]
    assert median == pytest.approx(0.4)
    by_text = {word.text.strip(): word for word in words if word.text}
    assert by_text["What"].start == 6.0
    assert by_text["not."].end == pytest.approx(1.0)


def test_the_first_word_after_a_pause_is_shortened():
    words = [TimedWord(" Late", [1], 0.0, 9.0, 0.9), TimedWord(" word", [2], 9.0, 9.3, 0.8)]
    (segment,) = add_words([Segment(20.0, 29.3, (99, 1, 2, 99))], words, 0.3, offset=20.0, last_speech_end=0.0, eot=50)
    assert segment.words == (Word(" Late", 28.4, 29.0, 0.9), Word(" word", 29.0, 29.3, 0.8))
    assert (segment.start, segment.end) == (28.4, 29.3)


def test_words_go_to_their_segments():
    words = [
        TimedWord(" a", [1], 0.0, 0.2, 0.9),
        TimedWord(" b", [2], 0.2, 0.4, 0.8),
        TimedWord(" c", [3], 1.0, 1.2, 0.7),
    ]
    segments = [Segment(0.0, 0.5, (60, 1, 2, 70)), Segment(1.0, 1.3, (75, 3, 80)), Segment(1.3, 1.4, (81,))]
    first, second, empty = add_words(segments, words, 0.2, offset=0.0, last_speech_end=0.0, eot=50)
    assert [word.word for word in first.words] == [" a", " b"]
    assert (first.start, first.end, second.start, second.end) == (0.0, 0.4, 1.0, 1.2)
    assert empty == segments[2]


def test_words_without_a_duration_leave_a_caption_its_times():
    (segment,) = add_words(
        [Segment(4.0, 5.0, (60, 1, 70))], [TimedWord(" a", [1], 0.2, 0.2)], 0.0, offset=4.0, last_speech_end=0.0, eot=50
    )
    assert (segment.start, segment.end, segment.words) == (4.0, 5.0, (Word(" a", 4.2, 4.2, 0.0),))


def test_alignment_heads_come_from_the_model():
    config = WhisperConfig.from_name("tiny")
    assert read_alignment_heads(config, {"alignment_heads": [[1, 0], [3, 5]]}) == ((1, 0), (3, 5))
    upper_half = read_alignment_heads(config, {})
    assert upper_half == tuple((block, head) for block in (2, 3) for head in range(6))
    with pytest.raises(ValueError, match="no block 4 with a head 0"):
        read_alignment_heads(config, {"alignment_heads": [[4, 0]]})


def test_json_as_openai_whisper_writes_it():
    words = (Word(" Ask", 0.5, 1.0, 0.91234), Word(" not.", 1.0, 2.5, 0.5))
    captions = [Caption(0.5, 2.5, "Ask not.", words), Caption(3.0, 4.0, "after the end")]
    content = json.loads(format_json(Transcript(captions, "en", 2.0)))
    assert content == {
        "text": "Ask not.",
        "segments": [
            {
                "id": 0,
                "start": 0.5,
                "end": 2.0,
                "text": "Ask not.",
                "words": [
                    {"word": " Ask", "start": 0.5, "end": 1.0, "probability": 0.9123},
                    {"word": " not.", "start": 1.0, "end": 2.0, "probability": 0.5},
                ],
            }
        ],
        "language": "en",
    }


def test_hotwords_are_previous_text_of_every_window(tiny):
    hotwords = tiny.tokenizer.encode(" Jezero, Ingenuity", add_special_tokens=False)

    def prompts(**options):
        transcriber = Transcriber(tiny, TranscriptionOptions(**options))
        shown = []
        transcriber._decode_windows = lambda files: (
            shown.append([transcriber._prompt(file) for file in files])
            or [([transcriber.model.special_tokens.timestamp_begin, *[7] * 300], -0.1, 0.0)] * len(files)
        )
        dict(transcriber.transcribe([("a", AudioFeatures(np.zeros((6000, 80), np.float32), None))]))
        return [prompt for (prompt,) in shown], transcriber

    special = tiny.special_tokens
    shown, transcriber = prompts(hotwords=" Jezero, Ingenuity ", temperatures=(0.0,))
    assert shown == [[special.sot_prev, *hotwords, special.sot]] * 2
    assert transcriber._left_pad(shown).shape == (2, len(hotwords) + 2), "the prompt is as wide as the words"
    shown, _ = prompts(hotwords="Jezero, Ingenuity", condition_on_previous_text=True, temperatures=(0.0,))
    assert shown[1] == [special.sot_prev, *hotwords, *[7] * (223 - len(hotwords)), special.sot]
    shown, _ = prompts(hotwords="Jezero " * 300, temperatures=(0.0,))
    assert len(shown[0]) == 2 + 223, "half of the context"
    assert prompts(temperatures=(0.0,))[0] == [[special.sot]] * 2
    with pytest.raises(OptionsError, match="hotwords: empty"):
        TranscriptionOptions(hotwords="  ")


def test_line_options():
    with pytest.raises(OptionsError, match="max_line_width: must be an int >= 1, got 0"):
        TranscriptionOptions(max_line_width=0)
    with pytest.raises(OptionsError, match="max_line_count: must be an int >= 1, got 0"):
        TranscriptionOptions(max_line_width=42, max_line_count=0)
    with pytest.raises(OptionsError, match="max_line_count: does nothing without max_line_width"):
        TranscriptionOptions(max_line_count=2)


@pytest.mark.release
def test_words_lines_and_hotwords_of_a_recording(shared):
    path, weights = shared / "media" / "speech" / "jfk.flac", shared / "weights" / "whisper-tiny.en"
    plain = transcribe_file(path, weights)
    assert not any(caption.words or "\n" in caption.text for caption in plain.captions)
    options = TranscriptionOptions(batch_size=1, hotwords="my fellow Martians")
    transcript = transcribe_file(path, weights, options, word_timestamps=True, max_line_width=20)
    assert all(len(line) <= 20 for caption in transcript.captions for line in caption.text.split("\n"))
    assert len(transcript.captions) > len(plain.captions)
    for caption in transcript.captions:
        assert (caption.start, caption.end) == (caption.words[0].start, caption.words[-1].end)
        assert "".join(word.word for word in caption.words).split() == caption.text.split()
    assert transcript.seconds == pytest.approx(176000 / SAMPLE_RATE, abs=0.01)


@pytest.mark.release
def test_hotwords_change_what_is_written(shared, tiny):
    def text(hotwords):
        transcript = transcribe(tiny, shared, SPEECH[1:], hotwords=hotwords)["speech_long.wav"]
        return " ".join(caption.text for caption in transcript.captions)

    assert "the web space telescope" in text(None)
    assert "the Webb Space Telescope" in text("James Webb Space Telescope")
