"""Weights go over and come back bit by bit, and whatever does not fit is named."""

import json
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert import blip2, calce, qformer, t5, vit, whisper
from calce_jax.checkpoints.convert.calce_pth import checkpoint_state_dict
from calce_jax.checkpoints.convert.mapping import IgnoredKey, MappingRow, add_prefix, mapping_rows, split_fused
from calce_jax.checkpoints.convert.sources import FORMATS
from calce_jax.checkpoints.convert.state_dict import (
    ConversionError,
    LazyArray,
    check_state_dict,
    iter_state_dict,
    lazy_state_dict,
    to_flax,
    to_torch,
)
from calce_jax.checkpoints.convert.weights import Weights, base_param_shapes, trainable_param_shapes
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models import lora
from calce_jax.models.calce import Calce, CalceConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.models.qformer import QFormer, QFormerConfig
from calce_jax.models.t5 import T5, T5Config
from calce_jax.models.vit import Vit, VitConfig
from calce_jax.models.whisper import Whisper, WhisperConfig
from tests.helpers import recordings_io as golden
from tests.helpers.manifests import manifest

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
    golden.load_state_dict(module, table, to_torch(table, random_like(make())))
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

        @property
        def dtype(self):
            return self.array.dtype

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
    one_by_one = iter_state_dict(vit.KEY_MAPPING, state)
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
    table = [*vit.KEY_MAPPING, MappingRow("cls_token", "class_token"), IgnoredKey("*.fc2.bias", "to match twice")]
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
        check_state_dict(table, tensors, state)
    said = "\n".join(caught.value.problems)
    assert "class_token (8,): 2 rows of the table for it" in said
    assert "blocks.1.mlp.fc2.bias (8,): matches 2 rows: blocks.{layer}.mlp.fc2.bias, *.fc2.bias" in said
    assert "cls_token (1, 1, 8): matches 2 rows: cls_token, cls_token" in said


def test_table_and_model_must_pair_up(small_vit):
    state, _ = small_vit
    with pytest.raises(ConversionError, match=r"positions \(5, 8\): no row of the table for it"):
        to_torch([row for row in vit.KEY_MAPPING if row.torch_name != "pos_embed"], state)
    with pytest.raises(ConversionError, match=r"nothing: the table has it \(from x\), the model does not"):
        to_torch([*vit.KEY_MAPPING, MappingRow("x", "nothing")], state)


def test_eva_checkpoints_may_hold_more(small_vit):
    state, tensors = small_vit
    more = {"norm.weight": np.zeros(8), "head.bias": np.zeros(1000), "blocks.39.norm1.weight": np.zeros(8)}
    check_state_dict(vit.KEY_MAPPING, tensors | more, state)
    assert all(row.reason for row in (*vit.KEY_MAPPING, *qformer.key_mapping()) if isinstance(row, IgnoredKey))


@pytest.mark.parametrize("peft", ["0.5", "0.9"])
def test_both_spellings_of_peft(peft):
    _, make = PARTS["t5 with lora"]
    state = random_like(make())
    tensors = to_torch(t5.key_mapping(lora=True, peft_version=peft), state)
    based = [name for name in tensors if "base_layer" in name]
    assert bool(based) == (peft == "0.9")
    for read_by in ("0.5", "0.9"):
        again = to_flax(t5.key_mapping(lora=True, peft_version=read_by), tensors, make())
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
    rows = add_prefix(
        [MappingRow("a.{layer}", ("x", "y"), split_fused(2), aliases=("b.{layer}",), tied=("c.{layer}",))], "p.", "q/"
    )
    assert rows == [
        replace(
            rows[0], torch_name="p.a.{layer}", flax_name=("q/x", "q/y"), aliases=("p.b.{layer}",), tied=("p.c.{layer}",)
        )
    ]


@pytest.fixture(scope="module")
def counts(shared):
    return json.loads((shared / "golden" / "14_param_counts.json").read_text())


FULL = CalceConfig.full()
# Per manifest: the table, the weights here that it fills, and names in it that are read but never written.
TIED = {f"{tower}.embed_tokens.weight" for tower in t5.TOWERS}
MANIFESTS = {
    "eva_vit_g": (add_prefix(vit.KEY_MAPPING, flax_prefix="vit/"), base_param_shapes, set()),
    "lavis_blip2_pretrain_flant5xl": (
        blip2.lavis_mapping(),
        base_param_shapes,
        {"Qformer.bert.embeddings.position_ids"},
    ),
    "hf_flan_t5_xl": (add_prefix(t5.key_mapping(lora=False), flax_prefix="t5/"), base_param_shapes, set()),
    "hf_blip2_flan_t5_xl": (blip2.hf_mapping(), base_param_shapes, {f"language_model.{name}" for name in TIED}),
    "calce_stage1_checkpoint": (
        calce.checkpoint_mapping(),
        trainable_param_shapes,
        {
            *(PREFIX + name for name in TIED),
            "Qformer.bert.embeddings.position_ids",
            "Qformer.cls.predictions.decoder.weight",
            "Qformer.cls.predictions.decoder.bias",
        },
    ),
}


@pytest.fixture(scope="module")
def full():
    """The full-size weights here, abstract."""
    return {shapes: shapes(FULL) for shapes in (base_param_shapes, trainable_param_shapes)}


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_both_ways(name, full):
    table, shapes, unwritten = MANIFESTS[name]
    there, parts = manifest(name), {part for row in mapping_rows(table) for part in row.param_names}
    ours = {part: leaf for part, leaf in full[shapes].items() if part in parts}
    check_state_dict(table, there, ours)
    back = lazy_state_dict(table, ours, tied=False)
    assert set(there) - set(back) == unwritten
    assert {key: tensor.shape for key, tensor in back.items()} == {key: there[key].shape for key in back}


def test_full_size_sources_fill_the_model(full):
    """Every weight comes from one of LAVIS, EVA, T5 and BERT, or is drawn; the same with Hugging Face's BLIP-2."""
    wanted = set(full[base_param_shapes])
    drawn = {"query_proj/kernel", "query_proj/bias"}
    for kinds in (("lavis", "eva", "t5", "bert"), ("hf", "bert")):
        filled = [part for kind in kinds for row in mapping_rows(FORMATS[kind].mapping(2)) for part in row.param_names]
        assert len(filled) == len(set(filled))
        assert set(filled) == wanted - drawn
    for kind, unfilled in (("calce", set()), ("mrblip", drawn)):
        filled = {part for row in mapping_rows(FORMATS[kind].mapping(2)) for part in row.param_names}
        assert filled == set(full[trainable_param_shapes]) - unfilled


def test_full_state_dict_both_ways():
    table, there = calce.key_mapping(lora=True), manifest("calce_full_state_dict")
    state = abstract(lambda: Calce(FULL, rngs=nnx.Rngs(0)))
    check_state_dict(table, there, state)
    back = lazy_state_dict(table, state)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: there[key].shape for key in back}
    unwritten = set(there) - set(back)
    assert all(key.startswith(("Qformer.cls.", "Qformer.bert.embeddings.position_ids")) for key in unwritten)


def test_written_checkpoint_is_the_originals_at_full_size(full):
    nothing = lambda leaf: LazyArray(leaf.shape, leaf.dtype, lambda: pytest.fail("read"))  # noqa: E731
    base, trained = ({name: nothing(leaf) for name, leaf in full[shapes].items()} for shapes in full)
    tensors = checkpoint_state_dict(Weights(base, trained, FULL, "nowhere"))
    wanted = manifest("calce_stage1_checkpoint")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in wanted.items()
    }
    assert len(wanted) == 877


def test_full_xxl_differs_from_xl_in_t5_alone():
    xxl = base_param_shapes(CalceConfig.full_xxl())
    ours = {part: leaf for part, leaf in xxl.items() if not part.startswith(("qformer/words", "qformer/positions"))}
    parts = {part for row in mapping_rows(blip2.hf_mapping()) for part in row.param_names}
    tensors = lazy_state_dict(blip2.hf_mapping(), {part: leaf for part, leaf in ours.items() if part in parts})
    assert tensors.keys() == manifest("hf_blip2_flan_t5_xl").keys()
    assert tensors["language_model.encoder.block.23.layer.1.DenseReluDense.wi_0.weight"].shape == (10240, 4096)
    assert tensors["language_projection.weight"].shape == (4096, 768)


def test_whisper_both_ways():
    state = abstract(lambda: Whisper(WhisperConfig.from_name("base"), rngs=nnx.Rngs(0)))
    there = manifest("openai_whisper_base_hf")
    check_state_dict(whisper.KEY_MAPPING, there, state)
    back = lazy_state_dict(whisper.KEY_MAPPING, state, tied=False)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: leaf.shape for key, leaf in there.items()}


@pytest.mark.parametrize("name", [*MANIFESTS, "calce_full_state_dict", "openai_whisper_base_hf"])
def test_manifests_are_those_recorded(name, shared):
    entries = json.loads((shared / "golden" / "manifests" / f"{name}.json").read_text())
    entries.pop("_note")
    assert {key: [list(leaf.shape), str(leaf.dtype)] for key, leaf in manifest(name).items()} == entries


def test_both_stages_save_the_same(shared):
    first, second = (
        json.loads((shared / "golden" / "manifests" / f"calce_stage{stage}_checkpoint.json").read_text())
        for stage in (1, 2)
    )
    assert {**first, "_note": 0} == {**second, "_note": 0}


def test_hugging_face_names_as_recorded_one_by_one(shared):
    """Each name of the original goes to the name here that Hugging Face's goes to."""
    entries = json.loads((shared / "golden" / "manifests" / "name_map.json").read_text())
    filled = {}
    for table in (calce.key_mapping(lora=False), blip2.hf_mapping()):
        for row in mapping_rows(table):
            for layer in range(39) if row.is_stacked else [0]:
                for name in row.accepted_names:
                    filled[name.replace("{layer}", str(layer))] = (
                        set(row.param_names),
                        layer if row.is_stacked else None,
                    )
    mapped = {name: entry["hf_blip2"] for name, entry in entries.items() if name != "_note" and entry["hf_blip2"]}
    assert len(mapped) == 1330
    for name, theirs in mapped.items():
        parts, layer = filled[name.replace("base_model.model.", "")]
        assert parts <= filled[theirs.split(" ")[0]][0], (name, theirs)
        assert layer == filled[theirs.split(" ")[0]][1]


def test_counts_as_recorded(counts, full):
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in full[base_param_shapes].items()}
    adapters = {name: int(np.prod(leaf.shape)) for name, leaf in full[trainable_param_shapes].items()}
    of = lambda prefix: sum(size for name, size in sizes.items() if name.startswith(prefix))  # noqa: E731
    assert of("vit/") == counts["visual_encoder"]
    assert of("qformer/") == counts["Qformer.bert"] + counts["query_tokens"]
    assert of("t5/") == counts["t5_model"]
    lora_size = sum(size for name, size in adapters.items() if name[-2:] in {"/a", "/b"})
    assert lora_size == counts["lora_trainable"]
    # The head that predicts words is the only thing left out.
    assert sum(sizes.values()) + lora_size == counts["total"] - counts["Qformer.cls"]


def test_recorded_weights_there_and_back(shared):
    tensors = golden.load_recording(shared, "13_e2e_state_dict")
    sizes = json.loads((shared / "golden" / "config.json").read_text())["13_e2e"]
    config = CalceConfig(
        VitConfig(sizes["vit"]["img"], 14, 32, 3, 4, sizes["vit"]["mlp_hidden"]),
        QFormerConfig(32, 4, 4, 64, query_tokens=8, image_width=32),
        T5Config(width=32, heads=4, head_width=8, mlp_width=64, encoder_depth=3, decoder_depth=3),
        LoraConfig(),
        compressed_query_tokens=2,
    )
    table = calce.key_mapping(lora=True)
    state = to_flax(table, tensors, abstract(lambda: Calce(config, rngs=nnx.Rngs(0))))
    back = to_torch(table, state)
    # Beyond what the file holds, only the names that repeat a tensor.
    assert set(back) - set(tensors) <= {f"{PREFIX}{tower}.embed_tokens.weight" for tower in ("encoder", "decoder")}
    for name in set(tensors) & set(back):
        np.testing.assert_array_equal(back[name], tensors[name])
    ignored = set(tensors) - set(back)
    assert all(name.startswith(("Qformer.cls.", "Qformer.bert.embeddings.position_ids")) for name in ignored)
