"""Mappings at full size, against the names and shapes of the published checkpoints."""

import json

import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert import blip2, calce, t5, vit, whisper
from calce_jax.checkpoints.convert.calce_pth import checkpoint_state_dict
from calce_jax.checkpoints.convert.mapping import add_prefix, mapping_rows
from calce_jax.checkpoints.convert.sources import FORMATS
from calce_jax.checkpoints.convert.state_dict import LazyArray, check_state_dict, lazy_state_dict
from calce_jax.checkpoints.convert.weights import Weights, base_param_shapes, trainable_param_shapes
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.whisper import Whisper, WhisperConfig
from tests.helpers.manifests import manifest

PREFIX = "t5_model.base_model.model."


def abstract(make):
    return nnx.state(nnx.eval_shape(make))


@pytest.fixture(scope="module")
def counts(shared):
    return json.loads((shared / "golden" / "14_param_counts.json").read_text())


FULL = CalceConfig.full()
# By manifest: its mapping, the function of the parameters it fills, and names in it that are ignored or tied.
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
    """Shapes and dtypes of the parameters at full size, by function."""
    return {shapes: shapes(FULL) for shapes in (base_param_shapes, trainable_param_shapes)}


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_both_ways(name, full):
    mapping, shapes, unwritten = MANIFESTS[name]
    published = manifest(name)
    names = {param for row in mapping_rows(mapping) for param in row.param_names}
    params = {param: leaf for param, leaf in full[shapes].items() if param in names}
    check_state_dict(mapping, published, params)
    written = lazy_state_dict(mapping, params, tied=False)
    assert set(published) - set(written) == unwritten
    assert {key: tensor.shape for key, tensor in written.items()} == {key: published[key].shape for key in written}


def test_full_size_sources_fill_the_model(full):
    """LAVIS, EVA, T5 and BERT together have every weight but `query_proj`; so have Hugging Face's BLIP-2 and BERT."""
    expected = set(full[base_param_shapes])
    random = {"query_proj/kernel", "query_proj/bias"}
    for names in (("lavis", "eva", "t5", "bert"), ("hf", "bert")):
        filled = [
            param for name in names for row in mapping_rows(FORMATS[name].mapping(2)) for param in row.param_names
        ]
        assert len(filled) == len(set(filled))
        assert set(filled) == expected - random
    for name, unfilled in (("calce", set()), ("mrblip", random)):
        filled = {param for row in mapping_rows(FORMATS[name].mapping(2)) for param in row.param_names}
        assert filled == set(full[trainable_param_shapes]) - unfilled


@pytest.mark.slow
def test_full_state_dict_both_ways():
    mapping, published = calce.key_mapping(lora=True), manifest("calce_full_state_dict")
    state = abstract(lambda: Calce(FULL, rngs=nnx.Rngs(0)))
    check_state_dict(mapping, published, state)
    written = lazy_state_dict(mapping, state)
    assert {key: tensor.shape for key, tensor in written.items()} == {key: published[key].shape for key in written}
    unwritten = set(published) - set(written)
    assert all(key.startswith(("Qformer.cls.", "Qformer.bert.embeddings.position_ids")) for key in unwritten)


def test_checkpoint_for_the_original_at_full_size(full):
    unreadable = lambda leaf: LazyArray(leaf.shape, leaf.dtype, lambda: pytest.fail("read"))  # noqa: E731
    base, trained = ({name: unreadable(leaf) for name, leaf in full[shapes].items()} for shapes in full)
    tensors = checkpoint_state_dict(Weights(base, trained, FULL, "nowhere"))
    published = manifest("calce_stage1_checkpoint")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()} == {
        name: (leaf.shape, leaf.dtype) for name, leaf in published.items()
    }
    assert len(published) == 877


def test_full_xxl_differs_from_xl_in_t5_alone():
    xxl = base_param_shapes(CalceConfig.full_xxl())
    names = {param for row in mapping_rows(blip2.hf_mapping()) for param in row.param_names}
    tensors = lazy_state_dict(blip2.hf_mapping(), {param: leaf for param, leaf in xxl.items() if param in names})
    assert tensors.keys() == manifest("hf_blip2_flan_t5_xl").keys()
    assert tensors["language_model.encoder.block.23.layer.1.DenseReluDense.wi_0.weight"].shape == (10240, 4096)
    assert tensors["language_projection.weight"].shape == (4096, 768)


def test_whisper_both_ways():
    state = abstract(lambda: Whisper(WhisperConfig.from_name("base"), rngs=nnx.Rngs(0)))
    published = manifest("openai_whisper_base_hf")
    check_state_dict(whisper.KEY_MAPPING, published, state)
    written = lazy_state_dict(whisper.KEY_MAPPING, state, tied=False)
    assert {key: tensor.shape for key, tensor in written.items()} == {
        key: leaf.shape for key, leaf in published.items()
    }


@pytest.mark.parametrize("name", [*MANIFESTS, "calce_full_state_dict", "openai_whisper_base_hf"])
def test_manifests_equal_the_recorded_ones(name, shared):
    entries = json.loads((shared / "golden" / "manifests" / f"{name}.json").read_text())
    entries.pop("_note")
    assert {key: [list(leaf.shape), str(leaf.dtype)] for key, leaf in manifest(name).items()} == entries


def test_both_stages_save_the_same_names(shared):
    first, second = (
        json.loads((shared / "golden" / "manifests" / f"calce_stage{stage}_checkpoint.json").read_text())
        for stage in (1, 2)
    )
    assert {**first, "_note": 0} == {**second, "_note": 0}


def test_hugging_face_names_as_recorded(shared):
    """Each name of the original maps to the same parameter as its name in Hugging Face's BLIP-2."""
    entries = json.loads((shared / "golden" / "manifests" / "name_map.json").read_text())
    params_of = {}
    for mapping in (calce.key_mapping(lora=False), blip2.hf_mapping()):
        for row in mapping_rows(mapping):
            for layer in range(39) if row.is_stacked else [0]:
                for name in row.accepted_names:
                    params_of[name.replace("{layer}", str(layer))] = (
                        set(row.param_names),
                        layer if row.is_stacked else None,
                    )
    mapped = {name: entry["hf_blip2"] for name, entry in entries.items() if name != "_note" and entry["hf_blip2"]}
    assert len(mapped) == 1330
    for name, hf_name in mapped.items():
        params, layer = params_of[name.replace("base_model.model.", "")]
        hf_params, hf_layer = params_of[hf_name.split(" ")[0]]
        assert params <= hf_params, (name, hf_name)
        assert layer == hf_layer


def test_counts_as_recorded(counts, full):
    sizes = {name: int(np.prod(leaf.shape)) for name, leaf in full[base_param_shapes].items()}
    adapters = {name: int(np.prod(leaf.shape)) for name, leaf in full[trainable_param_shapes].items()}
    count = lambda prefix: sum(size for name, size in sizes.items() if name.startswith(prefix))  # noqa: E731
    assert count("vit/") == counts["visual_encoder"]
    assert count("qformer/") == counts["Qformer.bert"] + counts["query_tokens"]
    assert count("t5/") == counts["t5_model"]
    lora_size = sum(size for name, size in adapters.items() if name[-2:] in {"/a", "/b"})
    assert lora_size == counts["lora_trainable"]
    # The unused word prediction head is left out.
    assert sum(sizes.values()) + lora_size == counts["total"] - counts["Qformer.cls"]
