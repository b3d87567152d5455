"""Whisper against transformers' Whisper, against recorded activations, and its invariants."""

import dataclasses
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert.state_dict import check_state_dict, to_torch
from calce_jax.checkpoints.convert.whisper import KEY_MAPPING
from calce_jax.models.whisper import Whisper, WhisperConfig
from calce_jax.models.whisper_sizes import WHISPER_SIZES
from calce_jax.speech.decode import DecodeInputs, detect_language, filter_logits, transcribe_batch
from calce_jax.speech.special_tokens import SpecialTokens
from calce_jax.speech.whisper_model import open_whisper
from tests.helpers import recordings_io as golden
from tests.helpers.oracle import oracle

pytestmark = pytest.mark.slow

# float32 sums in another order, through three layers.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# 60 text tokens, then Whisper's special tokens: end, start, two languages, tasks, ..., timestamps.
ENGLISH = SpecialTokens(
    sot=61,
    eot=60,
    no_timestamps=68,
    suppress_tokens=(1, 5, 61, 62, 63, 64, 65, 66, 67),
    begin_suppress_tokens=(7, 60),
    max_initial_timestamp_index=2,
    languages={},
    transcribe=None,
)
MANY = dataclasses.replace(ENGLISH, languages={"en": 62, "de": 63}, transcribe=65)
KINDS = {"english": (ENGLISH, 80), "multilingual": (MANY, 80), "large-v3": (MANY, 128)}


def size(mels: int) -> WhisperConfig:
    return WhisperConfig(
        width=16,
        encoder_heads=2,
        decoder_heads=4,
        encoder_mlp=20,
        decoder_mlp=24,
        encoder_depth=3,
        decoder_depth=2,
        vocab=90,
        mel_bins=mels,
        audio_positions=20,
        text_positions=24,
    )


def transformers_whisper(config, special_tokens, tensors):
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=config.vocab,
            num_mel_bins=config.mel_bins,
            d_model=config.width,
            encoder_layers=config.encoder_depth,
            decoder_layers=config.decoder_depth,
            encoder_attention_heads=config.encoder_heads,
            decoder_attention_heads=config.decoder_heads,
            encoder_ffn_dim=config.encoder_mlp,
            decoder_ffn_dim=config.decoder_mlp,
            max_source_positions=config.audio_positions,
            max_target_positions=config.text_positions,
            pad_token_id=special_tokens.eot,
            bos_token_id=special_tokens.eot,
            eos_token_id=special_tokens.eot,
            decoder_start_token_id=special_tokens.sot,
        )
    ).eval()
    model.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    settings = {
        "decoder_start_token_id": special_tokens.sot,
        "no_timestamps_token_id": special_tokens.no_timestamps,
        "suppress_tokens": list(special_tokens.suppress_tokens),
        "begin_suppress_tokens": list(special_tokens.begin_suppress_tokens),
        "max_initial_timestamp_index": special_tokens.max_initial_timestamp_index,
        "is_multilingual": bool(special_tokens.languages),
        "max_length": config.text_positions,
        "eos_token_id": special_tokens.eot,
        "pad_token_id": special_tokens.eot,
        "bos_token_id": special_tokens.eot,
    }
    if special_tokens.languages:
        settings["lang_to_id"] = {f"<|{code}|>": token for code, token in special_tokens.languages.items()}
        settings["task_to_id"] = {"transcribe": special_tokens.transcribe, "translate": 64}
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


IDS = np.array([[61, 62, 65, 4, 9], [61, 63, 65, 70, 71]])


def transformers_answers(config, special_tokens, tensors, mel):
    """Return what transformers' Whisper computes: states, logits, the tokens it writes, the languages it detects."""
    import torch  # noqa: PLC0415

    model = transformers_whisper(config, special_tokens, tensors)
    mel = torch.from_numpy(mel.transpose(0, 2, 1))
    options = {"language": "en", "task": "transcribe"} if special_tokens.languages else {}
    with torch.no_grad():
        forward = model(mel, decoder_input_ids=torch.from_numpy(IDS))
        answers = {"memory": forward.encoder_last_hidden_state, "logits": forward.logits}
        for name, times in (("times", True), ("words", False)):
            # One call without its loop over windows: what `transcribe_batch` does.
            written = model.generate(
                mel,
                return_timestamps=times,
                force_unique_generate_call=True,
                return_dict_in_generate=True,
                output_scores=True,
                **options,
            )
            answers[name] = written.sequences
            answers[f"{name}_logprobs"] = torch.stack(written.scores, dim=1).log_softmax(-1)
        if special_tokens.languages:
            answers["languages"] = model.detect_language(mel)
    return answers


@pytest.fixture(scope="module", params=["english", pytest.param("multilingual", marks=pytest.mark.release), "large-v3"])
def hf_pair(request):
    """Return a small model, its special tokens, the mel bands of two windows, and what transformers makes of them."""
    special_tokens, mels = KINDS[request.param]
    config = size(mels)
    whisper, tensors = golden.deterministic_weights(lambda: Whisper(config, rngs=nnx.Rngs(0)), KEY_MAPPING)
    mel = np.random.default_rng(0).normal(size=(2, config.mel_frames, mels)).astype(np.float32)
    theirs = oracle(f"whisper_{request.param}", lambda: transformers_answers(config, special_tokens, tensors, mel))
    return whisper, special_tokens, mel, theirs


encode = nnx.jit(Whisper.encode)


def decode_inputs(mel, prompts, temperature=0.0):
    width, batch = max(map(len, prompts)), len(prompts)
    rows = np.zeros((batch, width), np.int32)
    for row, prompt in zip(rows, prompts, strict=True):
        row[width - len(prompt) :] = prompt
    return DecodeInputs(
        mel=jnp.asarray(mel),
        prompt=jnp.asarray(rows),
        prompt_length=jnp.asarray([len(prompt) for prompt in prompts], jnp.int32),
        temperature=jnp.full((batch,), temperature, jnp.float32),
        seed=jnp.arange(batch, dtype=jnp.uint32),
    )


def transcribe(whisper, inputs, special_tokens, **options):
    graph, params = nnx.split(whisper)

    @jax.jit
    def run(params, inputs):
        return transcribe_batch(nnx.merge(graph, params), inputs, special_tokens, **options)

    return run(params, inputs)


def test_encoder_and_logits_as_transformers_computes_them(hf_pair):
    whisper, _, mel, theirs = hf_pair
    memory = encode(whisper, jnp.asarray(mel))
    np.testing.assert_allclose(memory, theirs["memory"], **CLOSE)

    @nnx.jit
    def logits(whisper, memory, ids):
        blocks = whisper.decoder_blocks()
        cache = whisper.init_cache(blocks, memory, 5)
        x, _ = whisper.decode_step(blocks, ids, cache, jnp.zeros((), jnp.int32), jnp.zeros((2,), jnp.int32))
        return whisper.logits(x)

    np.testing.assert_allclose(logits(whisper, memory, jnp.asarray(IDS, jnp.int32)), theirs["logits"], **CLOSE)


@pytest.mark.parametrize("times", [True, False], ids=["times", "words"])
def test_tokens_as_transformers_writes_them(hf_pair, times):
    whisper, special_tokens, mel, theirs = hf_pair
    prompt = special_tokens.prompt("en") + ([] if times else [special_tokens.no_timestamps])
    ours = transcribe(
        whisper, decode_inputs(mel, [prompt] * 2), special_tokens, max_length=24 - len(prompt), timestamps=times
    )
    name = "times" if times else "words"
    expected = theirs[name][:, len(prompt) :]
    np.testing.assert_array_equal(ours.tokens[:, : expected.shape[1]], expected)
    assert (np.asarray(ours.tokens)[:, expected.shape[1] :] == special_tokens.eot).all()
    scores = theirs[f"{name}_logprobs"]
    for row in range(2):
        length = int(ours.length[row])
        chosen = np.append(expected[row], special_tokens.eot)[: min(length + 1, scores.shape[1])]
        total = scores[row, np.arange(len(chosen)), chosen].sum()
        np.testing.assert_allclose(ours.avg_logprob[row], total / (length + 1), rtol=1e-5)


def test_language_as_transformers_detects_it(hf_pair):
    whisper, special_tokens, mel, theirs = hf_pair
    if not special_tokens.languages:
        pytest.skip("an English-only model has nothing to detect")
    ours = nnx.jit(lambda whisper, mel: detect_language(whisper, mel, special_tokens))(whisper, jnp.asarray(mel))
    np.testing.assert_array_equal(ours, theirs["languages"])


@pytest.fixture(scope="module")
def small():
    config = size(80)
    whisper, _ = golden.deterministic_weights(lambda: Whisper(config, rngs=nnx.Rngs(0)), KEY_MAPPING)
    return whisper, np.random.default_rng(1).normal(size=(3, config.mel_frames, 80)).astype(np.float32)


@pytest.mark.release
def test_rows_do_not_depend_on_the_batch(small):
    whisper, mel = small
    prompts = [[61], [66, 3, 4, 61], [66, 9, 61]]
    batched = transcribe(whisper, decode_inputs(mel, prompts, 0.7), ENGLISH, max_length=12)
    for row, prompt in enumerate(prompts):
        # Three copies of one row, without the padding of the longest prompt; the middle one is compared.
        alone = replace(
            decode_inputs(np.stack([mel[row]] * 3), [prompt] * 3, 0.7), seed=jnp.full((3,), row, jnp.uint32)
        )
        alone = transcribe(whisper, alone, ENGLISH, max_length=12)
        np.testing.assert_array_equal(alone.tokens[1], batched.tokens[row])
        np.testing.assert_allclose(alone.avg_logprob[1], batched.avg_logprob[row], **CLOSE)
        np.testing.assert_allclose(alone.no_speech_prob[1], batched.no_speech_prob[row], **CLOSE)


def test_a_seed_decides_what_is_drawn(small):
    whisper, mel = small
    inputs = decode_inputs(mel, [[61]] * 3, 1.0)
    first, again = (transcribe(whisper, inputs, ENGLISH, max_length=12).tokens for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = transcribe(whisper, replace(inputs, seed=inputs.seed + jnp.uint32(7)), ENGLISH, max_length=12).tokens
    assert not np.array_equal(first, other)


def test_bfloat16_is_near(small):
    whisper, mel = small
    graph, params = nnx.split(whisper)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    inputs = decode_inputs(mel, [[61]] * 3)
    exact = transcribe(whisper, inputs, ENGLISH, max_length=4)
    near = transcribe(nnx.merge(graph, params), inputs, ENGLISH, max_length=4, dtype="bfloat16")
    np.testing.assert_allclose(near.no_speech_prob, exact.no_speech_prob, rtol=0.2)
    np.testing.assert_array_equal(near.tokens[:, 0] >= ENGLISH.timestamp_begin, True)


def test_rules_for_times():
    logits = jnp.zeros((1, 90), jnp.float32)

    def may(*before, words=9.0):
        # Words and the end are so probable that no rule prefers timestamps to them.
        tokens = jnp.asarray([[*before, *[60] * (12 - len(before))]], jnp.int32)
        biased_logits = logits.at[:, :61].set(words)
        filtered = filter_logits(biased_logits, tokens, jnp.asarray(len(before), jnp.int32), ENGLISH, timestamps=True)
        return set(np.flatnonzero(np.isfinite(np.asarray(filtered[0]))))

    words = set(range(60)) - {1, 5}
    assert may() == {69, 70, 71}, "a text begins with a time, at most two steps after the window"
    assert may(70) == words | {60}, "after the first time a word, or the end"
    assert may(70, 3) == words | {60} | set(range(71, 90)), "a later time ends the words"
    assert may(70, 3, 75) == {60} | set(range(75, 90)), "and the next begins there or later"
    assert may(70, 3, 75, 75) == words | {60}, "after the pair a word, or the end"
    assert may(70, 3, 75, 75, 4) == words | {60} | set(range(76, 90))
    assert may(70, 3, words=0.0) == set(range(71, 90)), "all times batched are more probable than any one word"


def test_published_sizes():
    for name in WHISPER_SIZES:
        config = WhisperConfig.from_name(name)
        assert config.mel_bins == (128 if name in ("large-v3", "turbo") else 80)
        assert config.width % config.encoder_heads == 0
    assert WhisperConfig.from_name("tiny", english_only=True).vocab == 51864
    for name, english in (("huge", False), ("large-v3", True)):
        with pytest.raises(ValueError, match="choose one of tiny"):
            WhisperConfig.from_name(name, english_only=english)


@pytest.mark.parametrize(("name", "millions"), [("tiny", 38), ("large-v3", 1543), ("turbo", 809)])
def test_parameters_of_published_sizes(name, millions):
    state = nnx.state(nnx.eval_shape(lambda: Whisper(WhisperConfig.from_name(name), rngs=nnx.Rngs(0))))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(state)) / 1e6) == millions


def test_configs_that_are_no_whisper_are_refused():
    with pytest.raises(ValueError, match="'bert' is not 'whisper'"):
        WhisperConfig.from_hugging_face({"model_type": "bert"})
    with pytest.raises(ValueError, match=r"d_model, .*max_target_positions: missing"):
        WhisperConfig.from_hugging_face({"model_type": "whisper"})
    with pytest.raises(ValueError, match="activation_function"):
        WhisperConfig.from_hugging_face({"model_type": "whisper", "activation_function": "relu"})
    with pytest.raises(ValueError, match=r"lang_to_id, task_to_id: missing"):
        SpecialTokens.from_hugging_face(
            {
                "is_multilingual": True,
                "decoder_start_token_id": 1,
                "eos_token_id": 0,
                "no_timestamps_token_id": 5,
            }
        )
    with pytest.raises(ValueError, match=r"^no_timestamps_token_id: missing; take this file from the model"):
        SpecialTokens.from_hugging_face({"decoder_start_token_id": 1, "eos_token_id": 0})


def test_weights_go_back_bit_by_bit(small):
    whisper, _ = small
    tensors = to_torch(KEY_MAPPING, nnx.state(whisper))
    check_state_dict(KEY_MAPPING, tensors, nnx.state(whisper))
    assert tensors["model.encoder.conv1.weight"].shape == (16, 80, 3)
    again, _ = golden.deterministic_weights(lambda: Whisper(size(80), rngs=nnx.Rngs(0)), KEY_MAPPING)
    golden.load_state_dict(again, KEY_MAPPING, tensors)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(whisper))


@pytest.fixture(scope="module")
def tiny(shared):
    return open_whisper(shared / "weights" / "whisper-tiny.en")


@pytest.fixture(scope="module")
def recorded(shared):
    return golden.load_recording(shared, "15_whisper_tiny_en")


def test_real_encoder_as_recorded(tiny, recorded):
    memory = np.asarray(encode(tiny.whisper, jnp.asarray(recorded["mel"].T[None])))[0]
    # Of the largest, and of all batched.
    assert np.abs(memory - recorded["encoder"]).max() < 2e-5 * np.abs(recorded["encoder"]).max()
    assert np.linalg.norm(memory - recorded["encoder"]) < 5e-6 * np.linalg.norm(recorded["encoder"])


def test_real_tokens_as_recorded(tiny, recorded):
    prompt = recorded["prompt"].tolist()
    inputs = decode_inputs(recorded["mel"].T[None], [prompt])
    text = transcribe(tiny.whisper, inputs, tiny.special_tokens, max_length=100, timestamps=False)
    expected = recorded["ids"][len(prompt) :]
    np.testing.assert_array_equal(text.tokens[0, : len(expected)], expected)
    assert int(text.length[0]) == len(expected) - 1


def test_real_config_is_the_published_one(shared, tiny):
    config = json.loads((shared / "weights" / "whisper-tiny.en" / "config.json").read_text())
    assert (
        WhisperConfig.from_hugging_face(config)
        == WhisperConfig.from_name("tiny", english_only=True)
        == tiny.whisper.config
    )
