"""The flags of formats and paths, and Whisper, which is converted alone."""

import json

import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert import whisper
from calce_jax.checkpoints.convert.convert import convert
from calce_jax.checkpoints.convert.formats import parse_sources, parse_target
from calce_jax.checkpoints.convert.huggingface import blip2_config, read_blip2_size
from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.state_dict import lazy_state_dict
from calce_jax.checkpoints.convert.weights import as_lazy
from calce_jax.checkpoints.convert.writer import write_safetensors
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.whisper import Whisper, WhisperConfig
from calce_jax.presets.runs import get_preset


@pytest.mark.parametrize("text", ["hf", "hf:", "clip:x", "bert:a,"])
def test_unknown_source_format(text):
    with pytest.raises(ValueError, match=r"must be one of the following, got '.*'\n  lavis:PATH  LAVIS's blip2"):
        parse_sources(text)


def test_unknown_target_format():
    message = r"--target: must be one of the following, got 'onnx:x'\n  base:PATH  FILE\.safetensors"
    with pytest.raises(ValueError, match=message):
        parse_target("onnx:x")


def test_the_size_of_a_blip2_is_read_from_its_config(tmp_path):
    path = tmp_path / "config.json"
    for size in ("full", "full_xxl", "tiny"):
        config = blip2_config(CalceConfig.from_name(size, None, "float32", t5_vocab=9, bert_vocab=9))
        path.write_text(json.dumps(config | {"transformers_version": "4.31.0", "_commit_hash": None}))
        assert read_blip2_size(tmp_path) == size
    # BLIP-2 with Flan-T5-XL has Blip2Config's defaults in the towers of vision, which a config may leave out.
    path.write_text(json.dumps({"text_config": {"model_type": "t5", "d_model": 2048, "num_layers": 24}}))
    assert read_blip2_size(tmp_path) == "full"
    path.write_text(json.dumps({"text_config": {"model_type": "t5", "d_model": 512, "num_layers": 24}}))
    with pytest.raises(WeightsFileError, match=r"config\.json: widths and depths .*512.* are those of no size"):
        read_blip2_size(tmp_path)
    for damaged in ("[]", "{", '{"text_config": 3}'):
        path.write_text(damaged)
        with pytest.raises(WeightsFileError, match=r"config\.json: not the config of a BLIP-2 .*; fetch the whole"):
            read_blip2_size(tmp_path)


def test_whisper_with_flax_names(tmp_path):
    config = {
        "model_type": "whisper",
        "d_model": 8,
        **{f"{tower}_{field}": 2 for tower in ("encoder", "decoder") for field in ("attention_heads", "layers")},
        **{f"{tower}_ffn_dim": 12 for tower in ("encoder", "decoder")},
        **{"vocab_size": 11, "num_mel_bins": 5, "max_source_positions": 6, "max_target_positions": 7},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    sizes = WhisperConfig.from_hugging_face(config)
    shapes = named_leaves(nnx.state(nnx.eval_shape(lambda: Whisper(sizes, rngs=nnx.Rngs(0))), nnx.Param))
    rng = np.random.default_rng(6)
    weights = {name: as_lazy(rng.normal(size=leaf.shape).astype(np.float32)) for name, leaf in shapes.items()}
    write_safetensors(tmp_path / "model.safetensors", lazy_state_dict(whisper.KEY_MAPPING, weights))
    source, target = f"whisper:{tmp_path}", f"base:{tmp_path / 'flax.safetensors'}"
    convert(source, target, get_preset("shapes"))
    converted = open_tensors(tmp_path / "flax.safetensors")
    assert converted.keys() == weights.keys()
    for name, weight in weights.items():
        np.testing.assert_array_equal(converted[name].read(), weight.read(), strict=True)
    for wrong in ((f"{source},bert:x", target), (source, f"hf:{tmp_path / 'hf'}")):
        with pytest.raises(ValueError, match="whisper:PATH must be the only source, with --target=base:FILE"):
            convert(*wrong, get_preset("shapes"))
    with pytest.raises(WeightsFileError, match=r"gone/config\.json: no such file"):
        convert(f"whisper:{tmp_path / 'gone'}", target, get_preset("shapes"))
