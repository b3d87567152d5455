"""Loss and gradients of the whole model against torch's through transformers' BLIP-2 with the same weights.

The towers are compared in test_vit, test_qformer and test_t5, BLIP-2's checkpoint in test_convert_huggingface, the
search in test_fidelity.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert.calce import key_mapping
from calce_jax.checkpoints.convert.huggingface import write_blip2
from calce_jax.checkpoints.convert.state_dict import to_torch
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.models.calce import Calce, answer_loss, shift_right
from calce_jax.models.structure import split_params
from tests.helpers.minute_blip2 import IMAGE, PIXELS, SIZES, TEXT, WEIGHTS
from tests.helpers.oracle import oracle

pytestmark = pytest.mark.slow

ANSWER = np.array([[4, 9, 1], [7, 1, 0]], np.int32)
PREFIX = "t5_model.base_model.model."
# float32 sums in another order, forwards and back, relative to the largest entry of each gradient.
CLOSE = 1e-4


def transformers_gradients(folder):
    """Return the loss of transformers' model with merged adapters, and the gradient of each of its weights."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    write_blip2(folder, WEIGHTS)
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.vision_model.post_layernorm.eps = 1e-5
    ids = np.concatenate([np.full((2, SIZES.qformer.query_tokens), IMAGE), TEXT], axis=1)
    logits = model(
        pixel_values=torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy()),
        input_ids=torch.from_numpy(ids).long(),
        attention_mask=torch.ones(ids.shape).long(),
        decoder_input_ids=torch.from_numpy(np.array(shift_right(jnp.asarray(ANSWER)))).long(),
    ).logits
    labels = torch.from_numpy(np.where(ANSWER == 0, -100, ANSWER)).long()
    token_loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    loss = (token_loss.sum(dim=1) / (labels >= 0).sum(dim=1)).mean()
    loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **gradients}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Return the loss of transformers' model and its gradients."""
    recorded = oracle("blip2_gradients", lambda: transformers_gradients(tmp_path_factory.mktemp("blip2") / "hf"))
    return float(recorded.pop("loss")), recorded


@pytest.fixture(scope="module")
def ours():
    """Return our loss, the gradients under the original's names, and the parameters under the same names."""
    model = nnx.eval_shape(lambda: Calce(SIZES, rngs=nnx.Rngs(0)))
    weights = {**WEIGHTS.base, **WEIGHTS.trained}
    leaves = {name: jnp.asarray(weights[name.replace("/base/", "/")].read()) for name in named_leaves(nnx.state(model))}
    nnx.update(model, with_leaves(nnx.state(model), leaves))
    graph, trainable, frozen = split_params(model, "float32")
    text, answer = jnp.asarray(TEXT), jnp.asarray(ANSWER)

    def loss(trainable):
        model = nnx.merge(graph, trainable, frozen)
        image = model.t5_proj(model.qformer.encode_images(model.ln_vision(model.vit(jnp.asarray(PIXELS)))))
        prompt = jnp.concatenate([image, model.t5.shared(text)], axis=1)
        mask = jnp.ones(prompt.shape[:2], bool)
        return answer_loss(model.t5.decode(shift_right(answer), model.t5.encode(prompt, mask), mask), answer).mean()

    value, trainable_gradients = jax.jit(jax.value_and_grad(loss))(trainable)
    state = nnx.state(model)
    zeros = {name: np.zeros(leaf.shape, np.float32) for name, leaf in named_leaves(state).items()}
    trained = {name: np.asarray(leaf) for name, leaf in named_leaves(trainable_gradients).items()}
    names = key_mapping(lora=True)
    gradients = to_torch(names, with_leaves(state, zeros | trained))
    return float(value), gradients, to_torch(names, state)


def deviation(a, b):
    assert a.shape == b.shape
    return np.abs(a - b).max() / np.abs(b).max()


def test_the_loss_is_the_same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)


@pytest.mark.parametrize(
    ("our_name", "their_name"),
    [
        ("ln_vision.weight", "vision_model.post_layernorm.weight"),
        ("ln_vision.bias", "vision_model.post_layernorm.bias"),
        ("t5_proj.weight", "language_projection.weight"),
        ("t5_proj.bias", "language_projection.bias"),
    ],
)
def test_gradients_through_the_frozen_q_former(ours, theirs, our_name, their_name):
    expected = next(g for name, g in theirs[1].items() if name.endswith(their_name))
    assert deviation(ours[1][our_name], expected) < CLOSE


def test_gradients_of_every_adapter(ours, theirs):
    """A gradient G of the merged matrix W + s B A gives those of its adapter: s G A' for B, s B' G for A."""
    _, gradients, weights = ours
    scale, num_adapters = SIZES.lora.alpha / SIZES.lora.rank, 0
    for name in [name for name in weights if name.endswith("lora_A.default.weight")]:
        stem = name.removesuffix("lora_A.default.weight")
        merged_name = f"{stem.removeprefix(PREFIX)}weight"
        expected = next(g for theirs_, g in theirs[1].items() if theirs_.endswith(f"language_model.{merged_name}"))
        a, b = weights[name], weights[f"{stem}lora_B.default.weight"]
        assert deviation(gradients[f"{stem}lora_B.default.weight"], scale * expected @ a.T) < CLOSE, stem
        assert deviation(gradients[name], scale * b.T @ expected) < CLOSE, stem
        num_adapters += 1
    # q k v o and three of the feed-forward in the encoder, four more in the decoder, and the head.
    assert num_adapters == 7 * SIZES.t5.encoder_depth + 11 * SIZES.t5.decoder_depth + 1
