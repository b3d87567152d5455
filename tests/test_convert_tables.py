"""Weights go over and come back bit by bit, and whatever does not fit is named."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.convert import calce, qformer, t5, vit
from calce_jax.convert.table import (
    ConversionError,
    Ignored,
    Row,
    check,
    prefixed,
    split_rows,
    to_flax,
    to_torch,
    torch_tensors,
)
from calce_jax.models import lora
from calce_jax.models.calce import Calce, CalceConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.models.qformer import QFormer, QFormerConfig
from calce_jax.models.t5 import T5, T5Config
from calce_jax.models.vit import Vit, VitConfig
from calce_jax.paths import named_leaves
from tests import golden

VIT = VitConfig(image_size=8, patch=4, width=8, depth=2, heads=2, mlp_width=12)
QFORMER = QFormerConfig(width=8, depth=3, heads=2, ffn_width=12, queries=4, image_width=8, vocab=11, positions=9)
T5_SIZE = T5Config(width=8, heads=2, head_width=3, mlp_width=10, encoder_depth=2, decoder_depth=3, vocab=13)
CALCE = CalceConfig(VIT, QFORMER, T5_SIZE, LoraConfig(rank=2), compressed=2)
PREFIX = "t5_model.base_model.model."


def abstract(make):
    return nnx.state(nnx.eval_shape(make))


def abstract_t5(config, *, adapters):
    def make():
        model = T5(config, rngs=nnx.Rngs(0))
        if adapters:
            lora.attach(model, LoraConfig(), rngs=nnx.Rngs(0))
        return model

    return abstract(make)


def size(state):
    return sum(np.prod(leaf.shape, dtype=np.int64) for leaf in named_leaves(state).values())


PARTS = {
    "vit": (vit.TABLE, lambda: abstract(lambda: Vit(VIT, rngs=nnx.Rngs(0)))),
    "qformer": (qformer.table(), lambda: abstract(lambda: QFormer(QFORMER, rngs=nnx.Rngs(0)))),
    "t5": (t5.table(lora=False), lambda: abstract_t5(T5_SIZE, adapters=False)),
    "t5 with lora": (t5.table(lora=True), lambda: abstract_t5(T5_SIZE, adapters=True)),
    "calce": (calce.table(lora=True), lambda: abstract(lambda: Calce(CALCE, rngs=nnx.Rngs(0)))),
}


def random_like(state):
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(leaf.dtype), state)


@pytest.fixture(scope="module")
def small_vit():
    table, make = PARTS["vit"]
    state = random_like(make())
    return state, to_torch(table, state)


@pytest.mark.parametrize("part", PARTS)
def test_there_and_back_bit_by_bit(part):
    table, make = PARTS[part]
    state = random_like(make())
    tensors = to_torch(table, state)
    again = to_flax(table, tensors, make())
    jax.tree.map(np.testing.assert_array_equal, again, state)
    back = to_torch(table, again)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)
        assert back[name].flags.c_contiguous


def test_the_state_fits_the_module():
    table, make = PARTS["vit"]
    module = nnx.eval_shape(lambda: Vit(VIT, rngs=nnx.Rngs(0)))
    golden.load(module, table, to_torch(table, random_like(make())))
    assert module(jnp.zeros((1, 8, 8, 3))).shape == (1, 5, 8)


def test_layouts(small_vit):
    state, tensors = small_vit
    ours = named_leaves(state)
    qkv = np.concatenate([ours[f"blocks/attention/{name}/kernel"][1].T for name in "qkv"])
    np.testing.assert_array_equal(tensors["blocks.1.attn.qkv.weight"], qkv)
    np.testing.assert_array_equal(tensors["blocks.0.mlp.fc1.weight"], ours["blocks/mlp/wi/kernel"][0].T)
    np.testing.assert_array_equal(tensors["pos_embed"], ours["positions"][None])
    # Row 1, column 2, blue of the patch that feeds feature 5.
    assert tensors["patch_embed.proj.weight"][5, 2, 1, 2] == ours["patches/kernel"][(1 * 4 + 2) * 3 + 2, 5]


def test_cross_attention_belongs_to_every_second_layer():
    table, make = PARTS["qformer"]
    state = random_like(make())
    tensors = to_torch(table, state)
    names = sorted(name for name in tensors if "crossattention.self.query.weight" in name)
    layer = "Qformer.bert.encoder.layer.{}.crossattention.self.query.weight"
    assert names == [layer.format(0), layer.format(2)]
    np.testing.assert_array_equal(tensors[names[1]], named_leaves(state)["cross/q/kernel"][1].T)


def test_dtypes_are_those_of_the_model(small_vit):
    _, tensors = small_vit
    halves = {name: tensor.astype(np.float16) for name, tensor in tensors.items()}
    table, make = PARTS["vit"]
    wide = named_leaves(to_flax(table, halves, make()))
    assert {leaf.dtype for leaf in wide.values()} == {np.dtype(np.float32)}
    as_bfloat16 = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), make())
    narrow = to_flax(table, halves, as_bfloat16)
    assert {leaf.dtype for leaf in named_leaves(narrow).values()} == {np.dtype(jnp.bfloat16)}
    assert {tensor.dtype for tensor in to_torch(table, narrow).values()} == {np.dtype(jnp.bfloat16)}


def test_handles_are_read_once():
    reads = []

    @dataclass(frozen=True)
    class Handle:
        """A tensor in a file."""

        name: str
        array: np.ndarray

        @property
        def shape(self):
            return self.array.shape

        def __array__(self, dtype=None, copy=None):
            reads.append(self.name)
            return self.array

    table, make = PARTS["vit"]
    tensors = to_torch(table, random_like(make()))
    to_flax(table, {name: Handle(name, tensor) for name, tensor in tensors.items()}, make())
    assert sorted(reads) == sorted(tensors)
    reads.clear()
    with pytest.raises(ConversionError):
        to_flax(table, {"pos_embed": Handle("pos_embed", np.zeros((1, 6, 8)))}, make())
    assert not reads


def test_tensors_come_one_at_a_time(small_vit):
    state, tensors = small_vit
    one_by_one = torch_tensors(vit.TABLE, state)
    name, tensor = next(one_by_one)
    np.testing.assert_array_equal(tensor, tensors[name])
    assert [name, *(name for name, _ in one_by_one)] == list(tensors)


def test_all_that_is_wrong_is_said_at_once(small_vit):
    state, tensors = small_vit
    wrong = dict(tensors)
    del wrong["blocks.1.norm2.bias"]
    wrong["pos_embed"] = np.zeros((1, 6, 8), np.float32)
    wrong["blocks.0.attn.qkv.weight"] = np.zeros((24, 7), np.float32)
    wrong["blocks.2.norm1.weight"] = np.zeros(8, np.float32)
    wrong["stray"] = np.zeros((3, 4), np.float32)
    table = [*vit.TABLE, Row("cls_token", "class_token"), Ignored("*.fc2.bias", "to match twice")]
    with pytest.raises(ConversionError) as caught:
        to_flax(vit.TABLE, wrong, state)
    assert set(caught.value.problems) == {
        "pos_embed: has shape (1, 6, 8), the model needs (1, 5, 8)",
        "blocks.0.attn.qkv.weight: has shape (24, 7), the model needs (24, 8)",
        "blocks.2.norm1.weight (8,): matches no row",
        "stray (3, 4): matches no row",
        "blocks.1.norm2.bias (8,): missing, for blocks/mlp_norm/bias",
    }
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    with pytest.raises(ConversionError) as caught:
        check(table, tensors, state)
    said = "\n".join(caught.value.problems)
    assert "class_token (8,): 2 rows of the table for it" in said
    assert "blocks.1.mlp.fc2.bias (8,): matches 2 rows: blocks.{layer}.mlp.fc2.bias, *.fc2.bias" in said
    assert "cls_token (1, 1, 8): matches 2 rows: cls_token, cls_token" in said


def test_table_and_model_must_pair_up(small_vit):
    state, _ = small_vit
    with pytest.raises(ConversionError, match=r"positions \(5, 8\): no row of the table for it"):
        to_torch([row for row in vit.TABLE if row.torch != "pos_embed"], state)
    with pytest.raises(ConversionError, match=r"nothing: the table has it \(from x\), the model does not"):
        to_torch([*vit.TABLE, Row("x", "nothing")], state)


def test_eva_checkpoints_may_hold_more(small_vit):
    state, tensors = small_vit
    more = {"norm.weight": np.zeros(8), "head.bias": np.zeros(1000), "blocks.39.norm1.weight": np.zeros(8)}
    check(vit.TABLE, tensors | more, state)
    assert all(row.reason for row in (*vit.TABLE, *qformer.table()) if isinstance(row, Ignored))


@pytest.mark.parametrize("peft", ["0.5", "0.9"])
def test_both_spellings_of_peft(peft):
    _, make = PARTS["t5 with lora"]
    state = random_like(make())
    tensors = to_torch(t5.table(lora=True, peft=peft), state)
    based = [name for name in tensors if "base_layer" in name]
    assert bool(based) == (peft == "0.9")
    for read_by in ("0.5", "0.9"):
        again = to_flax(t5.table(lora=True, peft=read_by), tensors, make())
        jax.tree.map(np.testing.assert_array_equal, again, state)


def test_tied_names_stand_in_and_must_agree():
    table, make = PARTS["t5"]
    state = random_like(make())
    tensors = to_torch(table, state)
    tied = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    for name in tied:
        np.testing.assert_array_equal(tensors[name], tensors["shared.weight"])
    only_tied = {name: tensor for name, tensor in tensors.items() if name not in {"shared.weight", tied[0]}}
    jax.tree.map(np.testing.assert_array_equal, to_flax(table, only_tied, make()), state)
    tensors[tied[1]] = tensors[tied[1]] + 1
    with pytest.raises(ConversionError, match=r"decoder\.embed_tokens\.weight: differs from shared\.weight"):
        to_flax(table, tensors, make())


def test_prefixes_reach_every_name():
    rows = prefixed([Row("a.{layer}", ("x", "y"), split_rows(2), also=("b.{layer}",), tied=("c.{layer}",))], "p.", "q/")
    assert rows == [
        replace(rows[0], torch="p.a.{layer}", ours=("q/x", "q/y"), also=("p.b.{layer}",), tied=("p.c.{layer}",))
    ]


@pytest.fixture(scope="module")
def manifests(shared):
    def read(name):
        entries = json.loads((shared / "golden" / "manifests" / f"{name}.json").read_text())
        return {
            key: jax.ShapeDtypeStruct(tuple(entry[0]), np.dtype(entry[1]))
            for key, entry in entries.items()
            if key != "_note"
        }

    return read


@pytest.fixture(scope="module")
def counts(shared):
    return json.loads((shared / "golden" / "14_param_counts.json").read_text())


def test_full_vit_against_eva(manifests, counts):
    state = abstract(lambda: Vit(VitConfig.eva_g(), rngs=nnx.Rngs(0)))
    check(vit.TABLE, manifests("eva_vit_g"), state)
    assert size(state) == counts["visual_encoder"]


def test_full_qformer_count(counts):
    state = abstract(lambda: QFormer(QFormerConfig.bert_base(), rngs=nnx.Rngs(0)))
    assert size(state) == counts["Qformer.bert"] + counts["query_tokens"]


def test_full_t5_against_flan(manifests, counts):
    state = abstract_t5(T5Config.flan_xl(), adapters=False)
    check(t5.table(lora=False), manifests("hf_flan_t5_xl"), state)
    assert size(state) == counts["t5_model"]


def test_full_calce_against_the_original(manifests, counts):
    state = abstract(lambda: Calce(CalceConfig.full(), rngs=nnx.Rngs(0)))
    tensors = manifests("calce_full_state_dict")
    table = calce.table(lora=True)
    check(table, tensors, state)
    # The head that predicts words is the only thing left out.
    assert size(state) == counts["total"] - counts["Qformer.cls"]
    adapters = sum(np.prod(leaf.shape) for name, leaf in named_leaves(state).items() if name[-2:] in {"/a", "/b"})
    assert adapters == counts["lora_trainable"]


def test_recorded_weights_there_and_back(shared, manifests):
    tensors = golden.recorded(shared, "13_e2e_state_dict")
    sizes = json.loads((shared / "golden" / "config.json").read_text())["13_e2e"]
    config = CalceConfig(
        VitConfig(sizes["vit"]["img"], 14, 32, 3, 4, sizes["vit"]["mlp_hidden"]),
        QFormerConfig(32, 4, 4, 64, queries=8, image_width=32),
        T5Config(width=32, heads=4, head_width=8, mlp_width=64, encoder_depth=3, decoder_depth=3),
        LoraConfig(),
        compressed=2,
    )
    table = calce.table(lora=True)
    state = to_flax(table, tensors, abstract(lambda: Calce(config, rngs=nnx.Rngs(0))))
    back = to_torch(table, state)
    # Beyond what the file holds, only the names that repeat a tensor.
    assert set(back) - set(tensors) <= {f"{PREFIX}{tower}.embed_tokens.weight" for tower in ("encoder", "decoder")}
    for name in set(tensors) & set(back):
        np.testing.assert_array_equal(back[name], tensors[name])
    ignored = set(tensors) - set(back)
    assert all(name.startswith(("Qformer.cls.", "Qformer.bert.embeddings.position_ids")) for name in ignored)
