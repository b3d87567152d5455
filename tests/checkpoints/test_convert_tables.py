"""Mappings of the sub-models: round trips are bit-exact, and every problem is reported."""

import json
import pickle
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert import calce, qformer, t5, vit
from calce_jax.checkpoints.convert.mapping import IgnoredKey, MappingRow, add_prefix, split_fused
from calce_jax.checkpoints.convert.state_dict import (
    ConversionError,
    check_state_dict,
    iter_state_dict,
    to_flax,
    to_torch,
)
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models import lora
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.models.qformer import QFormer
from calce_jax.models.t5 import T5
from calce_jax.models.vit import Vit
from tests.helpers import recordings_io

VIT = VitConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_width=12)
QFORMER = QFormerConfig(
    width=8, depth=3, heads=2, mlp_width=12, query_tokens=4, image_width=8, vocab=11, max_positions=9
)
T5_SIZE = T5Config(width=8, heads=2, head_width=3, mlp_width=10, encoder_depth=2, decoder_depth=3, vocab=13)
CALCE = CalceConfig(VIT, QFORMER, T5_SIZE, LoraConfig(rank=2), compressed_query_tokens=2)
PREFIX = "t5_model.base_model.model."


def abstract(make):
    return nnx.state(nnx.eval_shape(make))


def abstract_t5(config, *, adapters):
    def make():
        model = T5(config, rngs=nnx.Rngs(0))
        if adapters:
            lora.add_adapters(model, LoraConfig(), rngs=nnx.Rngs(0))
        return model

    return abstract(make)


PARTS = {
    "vit": (vit.KEY_MAPPING, lambda: abstract(lambda: Vit(VIT, rngs=nnx.Rngs(0)))),
    "qformer": (qformer.key_mapping(), lambda: abstract(lambda: QFormer(QFORMER, rngs=nnx.Rngs(0)))),
    "t5": (t5.key_mapping(lora=False), lambda: abstract_t5(T5_SIZE, adapters=False)),
    "t5 with lora": (t5.key_mapping(lora=True), lambda: abstract_t5(T5_SIZE, adapters=True)),
    "calce": (calce.key_mapping(lora=True), lambda: abstract(lambda: Calce(CALCE, rngs=nnx.Rngs(0)))),
}


def random_like(state):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), state)


@pytest.fixture(scope="module")
def small_vit():
    mapping, make = PARTS["vit"]
    state = random_like(make())
    return state, to_torch(mapping, state)


@pytest.mark.parametrize("part", PARTS)
def test_round_trip_is_bit_exact(part):
    mapping, make = PARTS[part]
    state = random_like(make())
    tensors = to_torch(mapping, state)
    again = to_flax(mapping, tensors, make())
    jax.tree.map(np.testing.assert_array_equal, again, state)
    back = to_torch(mapping, again)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].flags.c_contiguous


def test_state_dict_loads_into_the_module():
    mapping, make = PARTS["vit"]
    module = nnx.eval_shape(lambda: Vit(VIT, rngs=nnx.Rngs(0)))
    recordings_io.load_state_dict(module, mapping, to_torch(mapping, random_like(make())))
    assert module(jnp.zeros((1, 8, 8, 3))).shape == (1, 5, 8)


def test_layouts(small_vit):
    state, tensors = small_vit
    params = named_leaves(state)
    qkv = np.concatenate([params[f"blocks/attention/{name}/kernel"][1].T for name in "qkv"])
    np.testing.assert_array_equal(tensors["blocks.1.attn.qkv.weight"], qkv)
    np.testing.assert_array_equal(tensors["blocks.0.mlp.fc1.weight"], params["blocks/mlp/wi/kernel"][0].T)
    np.testing.assert_array_equal(tensors["pos_embed"], params["positions"][None])
    # Row 1, column 2, blue of the patch that feeds feature 5.
    assert tensors["patch_embed.proj.weight"][5, 2, 1, 2] == params["patches/kernel"][(1 * 4 + 2) * 3 + 2, 5]


def test_cross_attention_in_every_second_layer():
    mapping, make = PARTS["qformer"]
    state = random_like(make())
    tensors = to_torch(mapping, state)
    names = sorted(name for name in tensors if "crossattention.self.query.weight" in name)
    layer = "Qformer.bert.encoder.layer.{}.crossattention.self.query.weight"
    assert names == [layer.format(0), layer.format(2)]
    np.testing.assert_array_equal(tensors[names[1]], named_leaves(state)["cross/q/kernel"][1].T)


def test_parameters_have_the_dtype_of_the_model(small_vit):
    _, tensors = small_vit
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    mapping, make = PARTS["vit"]
    wide = named_leaves(to_flax(mapping, halves, make()))
    assert {leaf.dtype for leaf in wide.values()} == {np.dtype(np.float32)}
    as_bfloat16 = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), make())
    narrow = to_flax(mapping, halves, as_bfloat16)
    assert {leaf.dtype for leaf in named_leaves(narrow).values()} == {np.dtype(jnp.bfloat16)}
    assert {tensor.dtype for tensor in to_torch(mapping, narrow).values()} == {np.dtype(jnp.bfloat16)}


def test_each_tensor_is_read_once():
    reads = []

    @dataclass(frozen=True)
    class Handle:
        """A tensor in a file."""

        name: str
        array: np.ndarray

        @property
        def shape(self):
            return self.array.shape

        @property
        def dtype(self):
            return self.array.dtype

        def __array__(self, dtype=None, copy=None):
            reads.append(self.name)
            return self.array

    mapping, make = PARTS["vit"]
    tensors = to_torch(mapping, random_like(make()))
    to_flax(mapping, {name: Handle(name, tensor) for name, tensor in tensors.items()}, make())
    assert sorted(reads) == sorted(tensors)
    reads.clear()
    with pytest.raises(ConversionError):
        to_flax(mapping, {"pos_embed": Handle("pos_embed", np.zeros((1, 6, 8)))}, make())
    assert not reads


def test_tensors_are_converted_one_at_a_time(small_vit):
    state, tensors = small_vit
    one_by_one = iter_state_dict(vit.KEY_MAPPING, state)
    name, tensor = next(one_by_one)
    np.testing.assert_array_equal(tensor, tensors[name])
    assert [name, *(name for name, _ in one_by_one)] == list(tensors)


def test_all_problems_are_reported_together(small_vit):
    state, tensors = small_vit
    wrong = dict(tensors)
    del wrong["blocks.1.norm2.bias"]
    wrong["pos_embed"] = np.zeros((1, 6, 8), np.float32)
    wrong["blocks.0.attn.qkv.weight"] = np.zeros((24, 7), np.float32)
    wrong["blocks.2.norm1.weight"] = np.zeros(8, np.float32)
    wrong["stray"] = np.zeros((3, 4), np.float32)
    mapping = [*vit.KEY_MAPPING, MappingRow("cls_token", "class_token"), IgnoredKey("*.fc2.bias", "to match twice")]
    with pytest.raises(ConversionError) as caught:
        to_flax(vit.KEY_MAPPING, wrong, state)
    assert set(caught.value.problems) == {
        "pos_embed: has shape (1, 6, 8), the model needs (1, 5, 8)",
        "blocks.0.attn.qkv.weight: has shape (24, 7), the model needs (24, 8)",
        "blocks.2.norm1.weight (8,): matches no row",
        "stray (3, 4): matches no row",
        "blocks.1.norm2.bias (8,): missing, for blocks/mlp_norm/bias",
    }
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    with pytest.raises(ConversionError) as caught:
        check_state_dict(mapping, tensors, state)
    problems = "\n".join(caught.value.problems)
    assert "class_token (8,): 2 rows of the mapping for it" in problems
    assert "blocks.1.mlp.fc2.bias (8,): matches 2 rows: blocks.{layer}.mlp.fc2.bias, *.fc2.bias" in problems
    assert "cls_token (1, 1, 8): matches 2 rows: cls_token, cls_token" in problems


def test_conversion_errors_cross_processes():
    error = pickle.loads(pickle.dumps(ConversionError(["a: missing", "b (3,): matches no row"])))
    assert error.problems == ("a: missing", "b (3,): matches no row")
    assert str(error) == "weights do not fit the model in 2 places:\n  a: missing\n  b (3,): matches no row"


def test_rows_and_parameters_must_match(small_vit):
    state, _ = small_vit
    with pytest.raises(ConversionError, match=r"positions \(5, 8\): no row of the mapping for it"):
        to_torch([row for row in vit.KEY_MAPPING if row.torch_name != "pos_embed"], state)
    with pytest.raises(ConversionError, match=r"nothing: the mapping has it \(from x\), the model does not"):
        to_torch([*vit.KEY_MAPPING, MappingRow("x", "nothing")], state)


def test_classifier_of_eva_is_ignored(small_vit):
    state, tensors = small_vit
    more = {"norm.weight": np.zeros(8), "head.bias": np.zeros(1000), "blocks.39.norm1.weight": np.zeros(8)}
    check_state_dict(vit.KEY_MAPPING, tensors | more, state)
    assert all(row.reason for row in (*vit.KEY_MAPPING, *qformer.key_mapping()) if isinstance(row, IgnoredKey))


@pytest.mark.parametrize("peft", ["0.5", "0.9"])
def test_names_of_both_peft_versions(peft):
    _, make = PARTS["t5 with lora"]
    state = random_like(make())
    tensors = to_torch(t5.key_mapping(lora=True, peft_version=peft), state)
    based = [name for name in tensors if "base_layer" in name]
    assert bool(based) == (peft == "0.9")
    for read_by in ("0.5", "0.9"):
        again = to_flax(t5.key_mapping(lora=True, peft_version=read_by), tensors, make())
        jax.tree.map(np.testing.assert_array_equal, again, state)


def test_tied_tensors_replace_each_other_and_must_be_equal():
    mapping, make = PARTS["t5"]
    state = random_like(make())
    tensors = to_torch(mapping, state)
    tied = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    for name in tied:
        np.testing.assert_array_equal(tensors[name], tensors["shared.weight"])
    only_tied = {name: tensor for name, tensor in tensors.items() if name not in {"shared.weight", tied[0]}}
    jax.tree.map(np.testing.assert_array_equal, to_flax(mapping, only_tied, make()), state)
    tensors[tied[1]] = tensors[tied[1]] + 1
    with pytest.raises(ConversionError, match=r"decoder\.embed_tokens\.weight: differs from shared\.weight"):
        to_flax(mapping, tensors, make())


def test_add_prefix_changes_every_name():
    rows = add_prefix(
        [MappingRow("a.{layer}", ("x", "y"), split_fused(2), aliases=("b.{layer}",), tied=("c.{layer}",))], "p.", "q/"
    )
    assert rows == [
        replace(
            rows[0], torch_name="p.a.{layer}", flax_name=("q/x", "q/y"), aliases=("p.b.{layer}",), tied=("p.c.{layer}",)
        )
    ]


def test_round_trip_of_recorded_weights(shared):
    tensors = recordings_io.load_recording(shared, "13_e2e_state_dict")
    sizes = json.loads((shared / "golden" / "config.json").read_text())["13_e2e"]
    config = CalceConfig(
        VitConfig(sizes["vit"]["img"], 14, 32, 3, 4, sizes["vit"]["mlp_hidden"]),
        QFormerConfig(32, 4, 4, 64, query_tokens=8, image_width=32),
        T5Config(width=32, heads=4, head_width=8, mlp_width=64, encoder_depth=3, decoder_depth=3),
        LoraConfig(),
        compressed_query_tokens=2,
    )
    mapping = calce.key_mapping(lora=True)
    state = to_flax(mapping, tensors, abstract(lambda: Calce(config, rngs=nnx.Rngs(0))))
    back = to_torch(mapping, state)
    # Only tied names are written that the file does not have.
    assert set(back) - set(tensors) <= {f"{PREFIX}{tower}.embed_tokens.weight" for tower in ("encoder", "decoder")}
    for name in set(tensors) & set(back):
        np.testing.assert_array_equal(back[name], tensors[name])
    ignored = set(tensors) - set(back)
    assert all(name.startswith(("Qformer.cls.", "Qformer.bert.embeddings.position_ids")) for name in ignored)
