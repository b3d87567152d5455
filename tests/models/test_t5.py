"""T5 against recorded activations, against transformers, and its invariants."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert.t5 import key_mapping
from calce_jax.models import lora
from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce import answer_loss, shift_right
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.layers import KeyStream, gelu
from calce_jax.models.lora import LoraConfig
from calce_jax.models.t5 import T5, T5Attention, relative_position_bucket
from tests.helpers import recordings_io as golden
from tests.helpers.equations import equations
from tests.helpers.oracle import oracle

# float32 sums in another order, through three layers.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}
# Six layers and the head, whose sums cancel. jax 0.12 is 1.12e-4 off; 0.10 stays below 1e-4.
HEAD = {"rtol": 2e-5, "atol": 1.2e-4}
PREFIX = "t5_model."
KINDS = pytest.mark.parametrize("kind", ["base", "lora"])


@pytest.fixture(scope="module")
def recorded(shared):
    return golden.load_recording(shared, "03_t5")


@pytest.fixture(scope="module")
def models(shared, recorded):
    """The recorded model without and with adapters."""
    sizes = json.loads((shared / "golden" / "config.json").read_text())["03_t5"]
    config = T5Config(
        width=sizes["d_model"],
        heads=sizes["heads"],
        head_width=sizes["d_kv"],
        mlp_width=sizes["d_ff"],
        encoder_depth=sizes["enc"],
        decoder_depth=sizes["dec"],
    )

    def make(adapters):
        t5 = T5(config, rngs=nnx.Rngs(0))
        if adapters:
            lora.add_adapters(t5, LoraConfig(), rngs=nnx.Rngs(0))
        return t5

    tensors = {}
    for name, array in golden.select_weights(recorded, "t5_model.").items():
        tensors[name.removeprefix(PREFIX).removeprefix("base_model.model.")] = array
    plain = {name: array for name, array in tensors.items() if "lora_" not in name}
    return {
        "base": golden.load_state_dict(nnx.eval_shape(lambda: make(False)), key_mapping(lora=False), plain),
        "lora": golden.load_state_dict(nnx.eval_shape(lambda: make(True)), key_mapping(lora=True), tensors),
    }


@pytest.fixture(scope="module")
def encoded(models, recorded):
    """Return each model, its encoder output and the mask of prompts padded left, right and in the middle."""
    x, mask = jnp.asarray(recorded["inputs_embeds"]), jnp.asarray(recorded["attention_mask"] != 0)
    return {kind: (t5, encode(t5, x, mask), mask) for kind, t5 in models.items()}


encode, decode = nnx.jit(T5.encode), nnx.jit(T5.decode)


def search(t5, memory, mask, **options):
    return nnx.jit(lambda t5, memory, mask: beam_search(t5, memory, mask, **options))(t5, memory, mask)


@KINDS
def test_encoder_as_recorded(encoded, recorded, kind):
    np.testing.assert_allclose(encoded[kind][1], recorded[f"{kind}_encoder_last_hidden"], **CLOSE)


@KINDS
def test_logits_and_loss_as_recorded(encoded, recorded, kind):
    labels = jnp.asarray(np.maximum(recorded["labels"], 0), jnp.int32)
    t5, memory, mask = encoded[kind]
    logits = decode(t5, shift_right(labels), memory, mask)
    # Logits after the end of an answer are undefined: the original masks the decoder's input there.
    is_token = np.asarray(labels != 0)
    np.testing.assert_allclose(logits[0], recorded[f"{kind}_logits_b0"], **HEAD)
    hot = logits[:, :, recorded["logits_hot_ids"]]
    np.testing.assert_allclose(hot[is_token], recorded[f"{kind}_logits_hot"][is_token], **HEAD)
    np.testing.assert_array_equal(logits.argmax(axis=-1)[is_token], recorded[f"{kind}_argmax"][is_token])
    total = jax.nn.logsumexp(logits, axis=-1)
    np.testing.assert_allclose(total[is_token], recorded[f"{kind}_logits_logsumexp"][is_token], **CLOSE)
    # The original averages over the tokens of the batch, ours over the tokens of each answer.
    loss = np.average(answer_loss(logits, labels), weights=is_token.sum(axis=1))
    np.testing.assert_allclose(loss, recorded[f"{kind}_loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(
            kind,
            {"num_beams": beams, "max_length": length},
            marks=[pytest.mark.release] if (kind == "base") == (length in (70, 20) and beams != 1) else [],
        )
        for kind in ("base", "lora")
        for beams, length in ((5, 70), (5, 20), (3, 15), (1, 20))
    ],
    ids=str,
)
def test_answers_as_recorded(encoded, recorded, kind, options):
    answers = search(*encoded[kind], behaviour="reference", **options)
    name = f"{kind}_gen_b{options['num_beams']}_new{options['max_length']}_min1"
    np.testing.assert_array_equal(answers.tokens[:, 0], recorded[name][:, 1:])
    if f"{name}_scores" in recorded:
        np.testing.assert_allclose(answers.score[:, 0], recorded[f"{name}_scores"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("behaviour", "version"), [("reference", "4_33_3"), ("default", "4_38_2")])
def test_forty_answers_as_each_version_of_transformers_gives_them(models, shared, behaviour, version):
    cases, t5 = golden.load_recording(shared, "03_t5_beam40"), models["base"]
    x = jnp.asarray(cases["inputs_embeds"])
    mask = jnp.ones(x.shape[:2], bool)
    answers = search(t5, encode(t5, x, mask), mask, num_beams=5, max_length=30, behaviour=behaviour)
    np.testing.assert_array_equal(answers.tokens[:, 0], cases[f"seq_transformers_{version}"][:, 1:])
    np.testing.assert_allclose(answers.score[:, 0], cases[f"score_{version}"], rtol=2e-5)  # float32 sums over 30 steps


def test_relative_buckets_as_recorded(recorded):
    distance = jnp.asarray(recorded["rel_positions"], jnp.int32)[None]
    for name, both_ways in (("bidirectional", True), ("unidirectional", False)):
        buckets = relative_position_bucket(distance, bidirectional=both_ways)
        np.testing.assert_array_equal(buckets[0], recorded[f"rel_bucket_{name}"])


def test_relative_buckets_begin_exactly_at_powers_of_two():
    """Without a logarithm, which may fall just below a whole number on a device."""
    distance = jnp.array([[-15, -16, -31, -32, -63, -64, 15, 16, 31, 32, 63, 64]])
    buckets = relative_position_bucket(distance, bidirectional=True)[0].tolist()
    assert buckets == [9, 10, 11, 12, 13, 14, 25, 26, 27, 28, 29, 30]
    for both_ways in (True, False):
        traced = jax.make_jaxpr(partial(relative_position_bucket, bidirectional=both_ways))(distance)
        dtypes = {str(value.aval.dtype) for equation in equations(traced) for value in equation.outvars}
        assert dtypes == {"int32", "bool"}


def test_relative_buckets_are_exact_near_and_one_far_away():
    distance = jnp.arange(-500, 501)[None]
    both, back = (np.asarray(relative_position_bucket(distance, bidirectional=way)[0]) for way in (True, False))
    assert both[500 - 7 : 501].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert both[501:508].tolist() == list(range(17, 24))
    assert (both[: 500 - 127] == 15).all()
    assert (both[500 + 128 :] == 31).all()
    assert back[500 - 15 : 501].tolist() == list(range(15, -1, -1))
    assert (back[501:] == 0).all()
    assert (back[: 500 - 127] == 31).all()


def test_the_gate_is_the_exact_gelu(recorded):
    y = gelu(jnp.asarray(recorded["act_x"]))
    np.testing.assert_allclose(
        y, recorded["act_y_reference"], rtol=0, atol=1e-6
    )  # two implementations of erf in float32
    assert np.abs(np.asarray(y) - recorded["act_y_gelu_new"]).max() > 1e-4


@pytest.fixture(scope="module")
def small():
    """Return a model with three encoder and two decoder blocks, and its state dict."""
    config = T5Config(width=12, heads=3, head_width=5, mlp_width=10, encoder_depth=3, decoder_depth=2, vocab=19)
    return golden.deterministic_weights(lambda: T5(config, rngs=nnx.Rngs(0)), key_mapping(lora=False))


def transformers_t5(tensors, x, mask, labels):
    """Return what transformers' T5 computes for the same state dict."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    config = transformers.T5Config(
        vocab_size=19,
        d_model=12,
        d_kv=5,
        d_ff=10,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    config.dense_act_fn = "gelu"
    # transformers 5 ignores the argument, but reads the attribute when it builds the model.
    config.tie_word_embeddings = False
    other = transformers.T5ForConditionalGeneration(config).eval()
    other.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    masked_labels = torch.from_numpy(np.where(labels == 0, -100, labels)).long()
    with torch.no_grad():
        theirs = other(
            inputs_embeds=torch.from_numpy(x), attention_mask=torch.from_numpy(mask).long(), labels=masked_labels
        )
    return {"memory": theirs.encoder_last_hidden_state, "logits": theirs.logits, "loss": theirs.loss}


@pytest.mark.slow
def test_as_transformers_computes_it(small):
    t5, tensors = small
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 12)).astype(np.float32)
    mask = np.arange(9) < np.array([[9], [6]])
    labels = np.array([[4, 9, 18, 1], [7, 1, 0, 0]], np.int32)
    theirs = oracle("t5", lambda: transformers_t5(tensors, x, mask, labels))
    memory = encode(t5, jnp.asarray(x), jnp.asarray(mask))
    logits = decode(t5, shift_right(jnp.asarray(labels)), memory, jnp.asarray(mask))
    np.testing.assert_allclose(memory, theirs["memory"], **CLOSE)
    np.testing.assert_allclose(logits, theirs["logits"], **HEAD)
    loss = np.average(answer_loss(logits, jnp.asarray(labels)), weights=(labels != 0).sum(axis=1))
    np.testing.assert_allclose(loss, theirs["loss"], rtol=1e-5)


def test_padding_changes_nothing(small):
    t5, _ = small
    x = jax.random.normal(jax.random.key(2), (1, 5, 12))
    mask, ids = jnp.ones((1, 5), bool), jnp.array([[0, 3, 7]])
    wide = jnp.pad(x, ((0, 0), (0, 4), (0, 0)), constant_values=9.0)
    wide_mask = jnp.pad(mask, ((0, 0), (0, 4)))
    memory, wide_memory = encode(t5, x, mask), encode(t5, wide, wide_mask)
    np.testing.assert_allclose(wide_memory[:, :5], memory, **CLOSE)
    np.testing.assert_allclose(decode(t5, ids, wide_memory, wide_mask), decode(t5, ids, memory, mask), **CLOSE)


@pytest.mark.slow
def test_step_by_step_as_all_at_once(small):
    t5, _ = small
    x = jax.random.normal(jax.random.key(3), (2, 6, 12))
    mask = jnp.arange(6)[None] < jnp.array([6, 4])[:, None]
    memory = encode(t5, x, mask)
    ids = jnp.array([[[0, 3, 7], [0, 5, 5]], [[0, 1, 2], [0, 18, 4]]])  # two beams about each of two prompts
    blocks = t5.decoder_blocks()
    cache = t5.init_cache(blocks, memory, 2, 3)
    assert cache[0].cross_attention.key.shape[0] == 2, "kept once a prompt, not once a beam"
    beam_indices = jnp.broadcast_to(jnp.arange(2)[None, :, None], (2, 2, 3))
    step = jax.jit(
        lambda ids, cache, position: t5.decode_step(blocks, ids, cache, position, beam_indices=beam_indices, mask=mask)
    )
    stepped = []
    for position in range(3):
        logits, cache = step(ids[:, :, position], cache, jnp.asarray(position))
        stepped.append(logits)
    whole = jnp.stack([decode(t5, ids[:, beam], memory, mask) for beam in range(2)], axis=1)
    np.testing.assert_allclose(jnp.stack(stepped, axis=2), whole, **HEAD)


def test_weights_of_attention_are_dropped(small):
    """The projections of this layer have no dropout: whatever differs comes from the weights."""
    layer = T5Attention(dataclasses.replace(small[0].config, dropout_rate=0.5), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(5), (1, 6, 12))
    keys_values = layer.project_keys_values(x, KeyStream(None))
    plain, dropped = (layer.attend(x, *keys_values, KeyStream(key)) for key in (None, jax.random.key(0)))
    assert not np.allclose(plain, dropped, atol=1e-3)


def test_dropout_needs_a_key(small):
    t5, _ = small
    x, mask = jnp.ones((1, 4, 12)), jnp.ones((1, 4), bool)
    first, again, other = (encode(t5, x, mask, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(encode(t5, x, mask), encode(t5, x, mask))
