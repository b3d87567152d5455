"""Models written for transformers and for peft give the same logits there."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert import bert
from calce_jax.checkpoints.convert.huggingface import write_adapter, write_blip2
from calce_jax.checkpoints.convert.mapping import mapping_rows
from calce_jax.checkpoints.convert.state_dict import check_state_dict
from calce_jax.checkpoints.convert.weights import base_param_shapes
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from tests.helpers.minute_blip2 import IMAGE, PIXELS, SIZES, START, TEXT, WEIGHTS

pytestmark = pytest.mark.slow

# float32 sums in another order, through eleven layers and a head with cancellation.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}
ANSWER = np.array([[START, 4, 9], [START, 7, 3]], np.int32)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def model():
    """The Flax model with adapters that are not merged."""
    model = nnx.eval_shape(lambda: Calce(SIZES, rngs=nnx.Rngs(0)))
    weights = {**WEIGHTS.base, **WEIGHTS.trained}
    leaves = {name: jnp.asarray(weights[name.replace("/base/", "/")].read()) for name in named_leaves(nnx.state(model))}
    nnx.update(model, with_leaves(nnx.state(model), leaves))
    return model


@nnx.jit
def image(model, pixels):
    """Return the embeddings of an image in T5's prompt."""
    return model.t5_proj(model.qformer.encode_images(model.ln_vision(model.vit(pixels))))


@nnx.jit
def logits(t5, prompt, answer):
    mask = jnp.ones(prompt.shape[:2], bool)
    return t5.decode(answer, t5.encode(prompt, mask), mask)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blip2_equals_transformers(tmp_path, torch, model, dtype):
    transformers = pytest.importorskip("transformers")
    weights = WEIGHTS if dtype == "float32" else WEIGHTS.cast_frozen(np.dtype(jnp.bfloat16))
    write_blip2(tmp_path / "hf", weights)
    blip2, info = transformers.Blip2ForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    ids = np.concatenate([np.full((2, 3), IMAGE), TEXT], axis=1)

    def blip2_logits():
        with torch.no_grad():
            return blip2.eval()(
                pixel_values=torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()),
                input_ids=torch.from_numpy(ids).long(),
                attention_mask=torch.ones(2, 8).long(),
                decoder_input_ids=torch.from_numpy(ANSWER).long(),
            ).logits.numpy()

    prompt = jnp.concatenate([image(model, PIXELS), model.t5.shared(jnp.asarray(TEXT))], axis=1)
    expected = logits(model.t5, prompt, ANSWER)
    assert np.abs(expected).max() > 0.5
    if dtype == "bfloat16":  # frozen weights of 8 significant bits
        np.testing.assert_allclose(blip2_logits(), expected, atol=0.1 * float(np.abs(expected).max()))
        return
    # transformers has one epsilon for all norms of the vision tower; CALCE has another for the last.
    np.testing.assert_allclose(blip2_logits(), expected, rtol=1e-3, atol=1e-3)
    blip2.vision_model.post_layernorm.eps = 1e-5
    np.testing.assert_allclose(blip2_logits(), expected, **CLOSE)


# peft warns that the head is tied to the embedding; transformers claims that of every T5.
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:`is_gradient_checkpointing`")
def test_adapter_equals_peft(tmp_path, torch, model):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    write_adapter(tmp_path / "adapter", WEIGHTS, "full")
    write_blip2(tmp_path / "hf", replace(WEIGHTS, trained={}))
    plain = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "hf").language_model
    prompt = np.random.default_rng(5).normal(size=(2, 6, 16)).astype(np.float32)
    inputs = {
        "inputs_embeds": torch.from_numpy(prompt),
        "attention_mask": torch.ones(2, 6).long(),
        "decoder_input_ids": torch.from_numpy(ANSWER).long(),
    }
    with torch.no_grad():
        before = plain.eval()(**inputs).logits.numpy()
        tuned = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        after = tuned(**inputs).logits.numpy()
    config = tuned.peft_config["default"]
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (2, 4.0, "google/flan-t5-xl")
    np.testing.assert_allclose(after, logits(model.t5, prompt, ANSWER), **CLOSE)
    assert np.abs(after - before).max() > 0.1


def test_bert_names_are_those_of_transformers(torch):
    """At full size, by transformers' `BertForPreTraining`."""
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.BertForPreTraining(transformers.BertConfig())
    tensors = {
        name: jax.ShapeDtypeStruct(tuple(tensor.shape), np.dtype(np.float32))
        for name, tensor in model.state_dict().items()
    }
    names = {param for row in mapping_rows(bert.key_mapping()) for param in row.param_names}
    full = base_param_shapes(CalceConfig.full())
    check_state_dict(bert.key_mapping(), tensors, {param: leaf for param, leaf in full.items() if param in names})
