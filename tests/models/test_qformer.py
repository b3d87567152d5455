"""The Q-Former against recorded activations, against transformers, and its invariants."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert.qformer import key_mapping
from calce_jax.models.calce_sizes import QFormerConfig
from calce_jax.models.qformer import QFormer
from tests.helpers import recordings_io as golden
from tests.helpers.oracle import oracle

# float32 sums in another order; every layer ends in a norm, so nothing grows.
CLOSE = {"rtol": 1e-5, "atol": 5e-6}
MINUTE = QFormerConfig(
    width=8, depth=3, heads=2, mlp_width=12, query_tokens=2, image_width=6, vocab=11, max_positions=9
)


# One program in place of as many as there are operations.
encode_images = nnx.jit(QFormer.encode_images)
encode_text = nnx.jit(QFormer.encode_text, static_argnames="dtype")
embed_sentences = nnx.jit(QFormer.embed_sentences)


def deterministic_qformer(config):
    return golden.deterministic_weights(
        lambda: QFormer(config, rngs=nnx.Rngs(0)), key_mapping(config.cross_attention_frequency)
    )


@pytest.fixture(scope="module")
def recorded(shared):
    return golden.load_recording(shared, "02_qformer")


@pytest.fixture(scope="module")
def qformer(shared, recorded):
    sizes = json.loads((shared / "golden" / "config.json").read_text())["02_qformer"]
    config = QFormerConfig(
        width=sizes["hidden"],
        depth=sizes["layers"],
        heads=sizes["heads"],
        mlp_width=sizes["ffn"],
        query_tokens=sizes["queries"],
        image_width=sizes["encoder_width"],
        cross_attention_frequency=sizes["cross_attention_freq"],
    )
    tensors = golden.select_weights(recorded, "Qformer.", "query_tokens")
    words = np.zeros((config.vocab, config.width), np.float32)
    words[recorded["word_embedding_ids"]] = recorded["word_embedding_rows"]
    tensors["Qformer.bert.embeddings.word_embeddings.weight"] = words
    return golden.load_state_dict(nnx.eval_shape(lambda: QFormer(config, rngs=nnx.Rngs(0))), key_mapping(), tensors)


@pytest.fixture(scope="module")
def tiny():
    return deterministic_qformer(QFormerConfig.tiny(vocab=50))[0]


@pytest.fixture(scope="module")
def image():
    return jax.random.normal(jax.random.key(1), (3, 10, 64))


IDS = jnp.asarray([[2, 7, 9, 3, 0, 0], [2, 11, 3, 0, 0, 0], [2, 7, 8, 9, 10, 3]], jnp.int32)


def test_every_visual_layer_as_recorded(qformer, recorded):
    states = jax.jit(qformer.image_hidden_states)(jnp.asarray(recorded["image_embeds"]))
    assert len(states) == qformer.config.depth + 1
    for number, state in enumerate(states):
        np.testing.assert_allclose(state, recorded[f"visual_hidden{number}"], **CLOSE)
    last = encode_images(qformer, jnp.asarray(recorded["image_embeds"]))
    np.testing.assert_allclose(last, recorded["visual_last_hidden"], **CLOSE)


def test_text_as_recorded(qformer, recorded):
    ids = recorded["text_input_ids"]
    np.testing.assert_array_equal(ids != 0, recorded["text_attention_mask"])
    ids = jnp.asarray(ids.astype(np.int32))
    hidden, real = encode_text(qformer, ids), recorded["text_last_hidden_real"]
    is_token = np.asarray(ids)[:, : real.shape[1]] != 0
    np.testing.assert_allclose(np.asarray(hidden)[:, : real.shape[1]][is_token], real[is_token], **CLOSE)
    np.testing.assert_allclose(embed_sentences(qformer, ids), recorded["text_cls"], **CLOSE)


def transformers_visual(config, tensors, image):
    """Return the states of transformers' torch Q-Former: the normed queries, then every layer's output."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model = transformers.Blip2QFormerModel(
        transformers.Blip2QFormerConfig(
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            encoder_hidden_size=config.image_width,
            cross_attention_frequency=config.cross_attention_frequency,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
        )
    ).eval()
    theirs = {
        name.removeprefix("Qformer.bert.")
        .replace("embeddings.LayerNorm", "layernorm")
        .replace("attention.self.", "attention.attention."): torch.from_numpy(tensor)
        for name, tensor in tensors.items()
    }
    assert not model.load_state_dict(theirs, strict=False).missing_keys
    queries = torch.from_numpy(tensors["query_tokens"]).expand(len(image), -1, -1)
    with torch.no_grad():
        out = model(
            query_embeds=queries, encoder_hidden_states=torch.from_numpy(np.array(image)), output_hidden_states=True
        )
    return torch.stack(out.hidden_states).numpy()


def transformers_text(config, tensors, ids):
    """Return the last hidden states of transformers' BERT with token type embeddings of zero."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.max_positions,
            hidden_act="gelu",
            layer_norm_eps=1e-12,
        ),
        add_pooling_layer=False,
    ).eval()
    theirs = {name.removeprefix("Qformer.bert."): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    assert model.load_state_dict(theirs, strict=False).missing_keys == ["embeddings.token_type_embeddings.weight"]
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight.zero_()
        ids = torch.from_numpy(np.array(ids)).long()
        return model(ids, attention_mask=ids != 0).last_hidden_state.numpy()


@pytest.mark.parametrize(("depth", "cross_every"), [(4, 2), (5, 2), (4, 3), (1, 2), (2, 1)])
def test_visual_agrees_with_transformers(depth, cross_every):
    config = dataclasses.replace(MINUTE, depth=depth, cross_attention_frequency=cross_every)
    ours, tensors = deterministic_qformer(config)
    image = jax.random.normal(jax.random.key(2), (3, 5, config.image_width))
    name = f"qformer_{depth}_blocks_{cross_every}"
    theirs = oracle(name, lambda: {"states": transformers_visual(config, tensors, image)})
    np.testing.assert_allclose(jax.jit(ours.image_hidden_states)(image), theirs["states"], **CLOSE)


def test_text_agrees_with_transformers():
    ours, tensors = deterministic_qformer(MINUTE)
    ids = jnp.asarray([[2, 7, 9, 3, 0, 0], [2, 10, 3, 0, 0, 0]], jnp.int32)
    theirs = oracle("qformer_text", lambda: {"states": transformers_text(MINUTE, tensors, ids)})
    np.testing.assert_allclose(encode_text(ours, ids), theirs["states"], **CLOSE)


def test_known_outputs_of_deterministic_weights():
    ours, _ = deterministic_qformer(MINUTE)
    image = jnp.cos(jnp.arange(4 * 6, dtype=jnp.float32)).reshape(1, 4, 6)
    ids = jnp.asarray([[2, 7, 3, 0]], jnp.int32)
    visual = [[0.3328, -0.11012, 0.03505, -0.22077], [0.33281, -0.10992, 0.03491, -0.22076]]  # both are transformers'
    text = [0.25493, 0.48378, 0.17097, -0.50275]
    np.testing.assert_allclose(encode_images(ours, image)[0, :, :4], visual, **CLOSE)
    np.testing.assert_allclose(embed_sentences(ours, ids)[0, :4], text, **CLOSE)


def test_padding_changes_nothing(tiny):
    longer = jnp.pad(IDS, ((0, 0), (0, 20)))
    alone = embed_sentences(tiny, IDS[1:2, :3])
    np.testing.assert_allclose(embed_sentences(tiny, longer), embed_sentences(tiny, IDS), **CLOSE)
    np.testing.assert_allclose(embed_sentences(tiny, longer)[1:2], alone, **CLOSE)
    # The embedding of [PAD] must not matter either.
    other = nnx.clone(tiny)
    other.words[...] = other.words[...].at[0].set(100.0)
    np.testing.assert_array_equal(embed_sentences(other, longer), embed_sentences(tiny, longer))


def test_rows_that_are_all_padding_stay_finite(tiny):
    assert np.isfinite(encode_text(tiny, jnp.zeros((1, 4), jnp.int32))).all()


def test_frames_do_not_depend_on_each_other(tiny, image):
    np.testing.assert_allclose(encode_images(tiny, image)[1:2], encode_images(tiny, image[1:2]), **CLOSE)


def test_bfloat16_stays_near_float32(tiny, image):
    visual, text = encode_images(tiny, image.astype(jnp.bfloat16)), encode_text(tiny, IDS, dtype=jnp.bfloat16)
    assert (visual.dtype, text.dtype) == (jnp.bfloat16, jnp.bfloat16)
    is_token = np.asarray(IDS) != 0
    # bfloat16 keeps 8 bits: 0.4 % an operation, on normed states that reach 3.
    np.testing.assert_allclose(visual.astype(jnp.float32), encode_images(tiny, image), atol=0.1)
    np.testing.assert_allclose(
        np.asarray(text, np.float32)[is_token], np.asarray(encode_text(tiny, IDS))[is_token], atol=0.1
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["encode_images", "encode_text"])
def test_only_a_key_enables_dropout(method):
    small, _ = deterministic_qformer(MINUTE)
    inputs = jnp.ones((2, 5, 6)) if method == "encode_images" else jnp.asarray([[2, 7, 3]], jnp.int32)
    run = jax.jit(lambda key: getattr(small, method)(inputs, key=key))
    plain, dropped = run(None), run(jax.random.key(0))
    np.testing.assert_array_equal(dropped, run(jax.random.key(0)))
    assert not np.allclose(dropped, plain, atol=1e-3)
    assert not np.allclose(dropped, run(jax.random.key(1)), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("remat", "drops"), [pytest.param("dots", False, marks=pytest.mark.release), ("full", True)])
@pytest.mark.release
def test_remat_changes_no_gradient(remat, drops):
    # Depth 3: a scan over whole groups and a shorter last group. With dropout the recomputed draws must repeat.
    small, _ = deterministic_qformer(MINUTE)
    image = jax.random.normal(jax.random.key(1), (2, 5, 6))

    key = jax.random.key(3) if drops else None

    def gradient(image, remat):
        def loss(image):
            return jnp.square(small.encode_images(image, key=key, remat=remat)[..., :3]).mean()

        return jax.jit(jax.grad(loss))(image)

    expected = gradient(image, "none")
    np.testing.assert_allclose(gradient(image, remat), expected, rtol=1e-4, atol=1e-8)
    assert np.abs(expected).max() > 1e-4


def test_too_long_a_sentence_is_named(tiny):
    with pytest.raises(ValueError, match="513 tokens exceed max_positions=512"):
        tiny.encode_text(jnp.ones((1, 513), jnp.int32))
    with pytest.raises(ValueError, match="width: must be a multiple of heads=5, got 8"):
        dataclasses.replace(MINUTE, heads=5)
