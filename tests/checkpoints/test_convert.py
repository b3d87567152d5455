"""Conversion from every source format to every target format; round trips are bit-exact."""

import json
import re
import resource
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from calce_jax.checkpoints.convert import bert, blip2, calce, t5, vit
from calce_jax.checkpoints.convert.calce_pth import write_checkpoint
from calce_jax.checkpoints.convert.convert import convert, model_config_of
from calce_jax.checkpoints.convert.formats import parse_sources, parse_target
from calce_jax.checkpoints.convert.huggingface import write_blip2
from calce_jax.checkpoints.convert.mapping import add_prefix, mapping_rows
from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.sources import open_sources
from calce_jax.checkpoints.convert.state_dict import ConversionError, lazy_state_dict
from calce_jax.checkpoints.convert.targets import EXPORTERS, write_base, write_run
from calce_jax.checkpoints.convert.weights import Weights, as_lazy, base_param_shapes, trainable_param_shapes
from calce_jax.checkpoints.convert.writer import cast_floating, write_safetensors, write_shards
from calce_jax.checkpoints.params_file import load_params
from calce_jax.checkpoints.restore import abstract_params, load_trainable
from calce_jax.checkpoints.workdir import resolve_init
from calce_jax.config import WeightsConfig, to_dict
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.presets.runs import get_preset

SIZES = CalceConfig(
    VitConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_width=12),
    QFormerConfig(width=8, depth=3, heads=2, mlp_width=12, query_tokens=4, image_width=8, vocab=11, max_positions=9),
    T5Config(width=8, heads=2, head_width=3, mlp_width=10, encoder_depth=2, decoder_depth=3, vocab=13),
    LoraConfig(rank=2, alpha=4.0),
    compressed_query_tokens=2,
)
HALF, BFLOAT16 = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
TRAINED = trainable_param_shapes(SIZES)


def random_weights(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: as_lazy(rng.normal(size=leaf.shape).astype(np.float32)) for name, leaf in shapes.items()}


BASE = Weights(random_weights(base_param_shapes(SIZES), 1), {}, SIZES, "random")
TUNED = replace(BASE, trained=random_weights(TRAINED, 2))


def state_dict(mapping, leaves, dtype=None):
    """Return the tensors of a checkpoint with the mapping's rows."""
    params = {param for row in mapping_rows(mapping) for param in row.param_names}
    tensors = lazy_state_dict(mapping_rows(mapping), {name: leaf for name, leaf in leaves.items() if name in params})
    return tensors if dtype is None else cast_floating(tensors, dtype)


def extra(*names):
    return {name: as_lazy(np.arange(3)) for name in names}


def save_pth(path, tensors, **more):
    torch = pytest.importorskip("torch")
    model = {name: torch.from_numpy(tensor.read().copy()) for name, tensor in tensors.items()}
    torch.save({"model": model, **more} if more else model, path)
    return path


EVA = add_prefix(vit.KEY_MAPPING, flax_prefix="vit/")
T5 = add_prefix(t5.key_mapping(lora=False), flax_prefix="t5/")


@pytest.fixture
def hub(tmp_path):
    """A folder with BERT, under the names of its first release, and Flan-T5 in shards."""
    words = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state_dict(bert.key_mapping(), BASE.base).items()
    }
    unused = extra("bert.pooler.dense.weight", "cls.predictions.bias", "bert.embeddings.token_type_embeddings.weight")
    attention = extra("bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.LayerNorm.gamma")
    for name in ("bert", "t5"):
        (tmp_path / name).mkdir()
    write_safetensors(tmp_path / "bert/model.safetensors", words | unused | attention)
    write_shards(tmp_path / "t5", state_dict(T5, BASE.base), max_shard_bytes=3000)
    return tmp_path


@pytest.fixture
def hugging_face(hub):
    """The folder `hub` with BLIP-2 in Hugging Face's layout."""
    write_blip2(hub / "hf", BASE)
    return hub


def assert_same(left, right, names=None):
    names = right.keys() if names is None else names
    assert set(names) <= left.keys()
    for name in names:
        np.testing.assert_array_equal(left[name].read(), right[name].read(), err_msg=name, strict=True)


FROM_SOURCES = {name for name in BASE.base if not name.startswith("query_proj/")}


def test_lavis_with_eva_t5_and_bert(hub):
    eva = save_pth(hub / "eva.pth", state_dict(EVA, BASE.base, HALF) | extra("blocks.39.norm1.weight", "head.bias"))
    tied = extra("Qformer.bert.embeddings.position_ids", "t5_model.encoder.embed_tokens.weight")
    lavis = save_pth(hub / "lavis.pth", state_dict(blip2.lavis_mapping(), BASE.base) | tied, epoch=9)
    assert (hub / "t5/model.safetensors.index.json").exists()
    weights = open_sources(parse_sources(f"lavis:{lavis},eva:{eva},t5:{hub / 't5'},bert:{hub / 'bert'}"), SIZES)
    vit_names = {name for name in BASE.base if name.startswith("vit/")}
    assert_same(weights.base, BASE.base, FROM_SOURCES - vit_names)
    assert_same(weights.base, cast_floating(BASE.base, HALF), vit_names)
    assert not weights.trained


@pytest.mark.slow
def test_hugging_face_with_bert(hugging_face):
    sources = f"hf:{hugging_face / 'hf'},bert:{hugging_face / 'bert'}"
    weights = open_sources(parse_sources(sources), SIZES, seed=1)
    assert_same(weights.base, BASE.base, FROM_SOURCES)
    again, other = (open_sources(parse_sources(sources), SIZES, seed=seed).base for seed in (1, 2))
    assert_same(again, weights.base)
    assert (other["query_proj/kernel"].read() != weights.base["query_proj/kernel"].read()).all()


def test_hugging_face_under_newer_names(hugging_face):
    tensors = {f"model.{name}": tensor for name, tensor in open_tensors(hugging_face / "hf").items()}
    tied = {"model.language_model.encoder.embed_tokens.weight": tensors["model.language_model.shared.weight"]}
    write_safetensors(hugging_face / "new.safetensors", tensors | tied)
    sources = f"hf:{hugging_face / 'new.safetensors'},bert:{hugging_face / 'bert'}"
    assert_same(open_sources(parse_sources(sources), SIZES).base, BASE.base, FROM_SOURCES)


def test_a_bias_on_the_keys_is_not_dropped_in_silence(hugging_face):
    path, name = hugging_face / "hf/model.safetensors", "vision_model.encoder.layers.1.self_attn.qkv.bias"
    tensors = {name: as_lazy(tensor.read()) for name, tensor in open_tensors(path).items()}
    write_safetensors(path, tensors | {name: as_lazy(np.ones(24, np.float32))})
    weights = open_sources(parse_sources(f"hf:{hugging_face / 'hf'},bert:{hugging_face / 'bert'}"), SIZES)
    with pytest.raises(ConversionError, match=rf"{name}: the bias of the keys"):
        write_base(hugging_face / "base.safetensors", weights)
    assert not list(hugging_face.glob("base*"))


def test_nan_and_infinity_are_damage(hub):
    tensors = state_dict(bert.key_mapping(), BASE.base)
    broken = tensors["bert.embeddings.word_embeddings.weight"].read().copy()
    broken[3, 3] = np.inf
    write_safetensors(hub / "b.safetensors", tensors | {"bert.embeddings.word_embeddings.weight": as_lazy(broken)})
    write_safetensors(hub / "base.safetensors", BASE.base)
    sources = f"base:{hub / 'base.safetensors'},bert:{hub / 'b.safetensors'}"
    with pytest.raises(ConversionError, match=r"word_embeddings\.weight: holds NaN or infinity"):
        write_base(hub / "out.safetensors", open_sources(parse_sources(sources), SIZES))
    assert not list(hub.glob("out*"))


def test_position_embedding_is_interpolated_to_the_grid(hub):
    larger = replace(SIZES, vit=replace(SIZES.vit, image_size=12))
    write_safetensors(hub / "eva.safetensors", state_dict(EVA, BASE.base))
    write_safetensors(hub / "base.safetensors", random_weights(base_param_shapes(larger), 1))
    sources = parse_sources(f"base:{hub / 'base.safetensors'},eva:{hub / 'eva.safetensors'}")
    positions = open_sources(sources, larger).base["vit/positions"]
    expected = vit.interpolate_positions(BASE.base["vit/positions"].read(), 3)
    np.testing.assert_array_equal(positions.read(), expected)


@pytest.mark.slow
def test_base_file_is_what_training_reads(hugging_face):
    weights = open_sources(parse_sources(f"hf:{hugging_face / 'hf'},bert:{hugging_face / 'bert'}"), SIZES)
    write_base(hugging_face / "weights/base.safetensors", weights)
    spec = base_param_shapes(SIZES)
    params = load_params(hugging_face / "weights/base.safetensors", spec)
    jax.tree.map(np.testing.assert_array_equal, params, {name: weights.base[name].read() for name in spec})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [HALF, BFLOAT16])
def test_round_trip_in_half_precision(hub, dtype):
    """From PyTorch to Flax to PyTorch, in the dtype of the source."""
    narrow = BASE.cast_frozen(dtype)
    assert str(narrow.base["ln_vision/scale"].dtype) == "float32"
    write_blip2(hub / "hf", narrow)
    source = open_tensors(hub / "hf")
    assert source["language_model.lm_head.weight"].dtype == dtype
    write_base(hub / "base.safetensors", open_sources(parse_sources(f"hf:{hub / 'hf'},bert:{hub / 'bert'}"), SIZES))
    write_blip2(hub / "again", open_sources(parse_sources(f"base:{hub / 'base.safetensors'}"), SIZES))
    assert_same(open_tensors(hub / "again"), source)
    assert json.loads((hub / "again/config.json").read_text())["dtype"] == str(dtype)


RUN = get_preset("shapes,stage=1")


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with a checkpoint of the original, stage1.pth, and base.safetensors."""
    pytest.importorskip("torch")
    write_checkpoint(tmp_path / "stage1.pth", TUNED)
    write_safetensors(tmp_path / "base.safetensors", BASE.base)
    return tmp_path


def test_round_trip_of_the_originals_checkpoint(checkpoint):
    sources = f"base:{checkpoint / 'base.safetensors'},calce:{checkpoint / 'stage1.pth'}"
    weights = open_sources(parse_sources(sources), SIZES)
    assert_same(weights.trained, TUNED.trained)
    assert_same(weights.base, BASE.base)
    write_run(checkpoint / "run", weights, RUN)
    again = open_sources(parse_sources(f"orbax:{checkpoint / 'run'}"), SIZES)
    assert_same(again.trained, TUNED.trained)
    write_checkpoint(checkpoint / "again.pth", again)
    source, result = (open_tensors(checkpoint / name) for name in ("stage1.pth", "again.pth"))
    assert source.keys() == result.keys()
    assert_same(result, source)


def test_tied_names_share_one_tensor(checkpoint):
    torch = pytest.importorskip("torch")
    model = torch.load(checkpoint / "stage1.pth", weights_only=True)["model"]
    first, second = (model[f"{calce.PEFT_PREFIX}{tower}.embed_tokens.weight"] for tower in t5.TOWERS)
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    np.testing.assert_array_equal(first.numpy(), BASE.base["t5/shared/embedding"].read())
    assert model["Qformer.bert.embeddings.position_ids"].tolist() == [list(range(9))]


def test_frozen_weights_and_optimizer_of_the_original_are_ignored(checkpoint):
    torch = pytest.importorskip("torch")
    content = torch.load(checkpoint / "stage1.pth", weights_only=True)
    for name in list(content["model"]):
        if "lora_" not in name and not name.startswith(("ln_vision", "query_proj", "t5_proj")):
            content["model"][name] = torch.full_like(content["model"][name], 9)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save(content | {"optimizer": optimizer, "scaler": {}, "epoch": 3, "config": {"a": [1]}}, checkpoint / "x.pth")
    sources = f"base:{checkpoint / 'base.safetensors'},calce:{checkpoint / 'x.pth'}"
    weights = open_sources(parse_sources(sources), SIZES)
    assert_same(weights.trained, TUNED.trained)
    assert_same(weights.base, BASE.base)


def test_mr_blip_has_no_query_proj(checkpoint):
    tensors = state_dict(calce.checkpoint_mapping(query_proj=False), TUNED.trained)
    path = save_pth(checkpoint / "mr.pth", tensors, epoch=1)
    weights = open_sources(parse_sources(f"base:{checkpoint / 'base.safetensors'},mrblip:{path}"), SIZES)
    names = {name for name in TRAINED if not name.startswith("query_proj/")}
    assert weights.trained.keys() == names
    assert_same(weights.trainable_params(), TUNED.trained, names)
    assert_same(weights.trainable_params(), BASE.base, TRAINED.keys() - names)
    with pytest.raises(ConversionError, match=r"mrblip:\S+: query_proj\.weight \(2, 4\): matches no row"):
        open_sources([("base", checkpoint / "base.safetensors"), ("mrblip", checkpoint / "stage1.pth")], SIZES)


def test_run_that_refers_to_a_base_file(checkpoint):
    base = checkpoint / "base.safetensors"
    weights = open_sources([("base", base), ("calce", checkpoint / "stage1.pth")], SIZES)
    write_run(checkpoint / "run", weights, RUN)
    config = json.loads((checkpoint / "run/config.json").read_text())
    assert config["weights"] == {"base": str(base), "start": ""}
    assert sorted(path.name for path in (checkpoint / "run").iterdir()) == ["checkpoints", "config.json"]
    assert resolve_init(checkpoint / "new", other_run=str(checkpoint / "run")).kind == "other_run"


# Orbax writes arrays concurrently; when one fails, the others find its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_disk_full_at_the_checkpoint_of_a_run(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    write_safetensors(tmp_path / "base.safetensors", BASE.base)
    many = {name: as_lazy(np.random.default_rng(0).normal(size=(100, 100))) for name in TUNED.trained}
    weights = replace(TUNED, trained=many, file=tmp_path / "base.safetensors")
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*run \(.*\); make room, or choose another place"):
            write_run(tmp_path / "run", weights, RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.slow
def test_run_with_its_own_base(hugging_face, checkpoint):
    sources = f"hf:{hugging_face / 'hf'},bert:{hugging_face / 'bert'},calce:{checkpoint / 'stage1.pth'}"
    write_run(checkpoint / "run", open_sources(parse_sources(sources), SIZES), RUN)
    (checkpoint / "run").rename(checkpoint / "moved")
    again = open_sources(parse_sources(f"orbax:{checkpoint / 'moved'}"), SIZES)
    # The base weights stay those from before training.
    assert_same(again.base, BASE.base, FROM_SOURCES)
    assert_same(again.trained, TUNED.trained)
    write_run(checkpoint / "base", open_sources(parse_sources(sources.rsplit(",", 1)[0]), SIZES), RUN)
    assert not open_sources([("orbax", checkpoint / "base")], SIZES).trained


@pytest.mark.slow
def test_training_goes_on_from_a_converted_run(checkpoint):
    write_run(checkpoint / "run", TUNED, RUN)
    like = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), abstract_params(SIZES, "float32")[0])
    start = named_leaves(load_trainable(checkpoint / "run", like))
    assert start.keys() == TUNED.trained.keys()
    for name, leaf in TUNED.trained.items():
        np.testing.assert_array_equal(start[name], leaf.read())


def test_targets_that_need_adapters(hub):
    for name in ("calce", "peft"):
        export_format, path = parse_target(f"{name}:{hub / 'out'}")
        with pytest.raises(ConversionError, match="the sources hold no adapters; add calce:PATH, mrblip:PATH"):
            EXPORTERS[export_format](path, BASE, RUN)
    assert not list(hub.glob("out*"))


def test_problems_of_all_sources_are_reported_together(hub):
    words = {
        name: tensor for name, tensor in state_dict(bert.key_mapping(), BASE.base).items() if "layer.1." not in name
    }
    words["bert.embeddings.position_embeddings.weight"] = as_lazy(np.zeros((9, 8), np.int8))
    write_safetensors(hub / "words.safetensors", words | extra("stray"))
    eyes = state_dict(EVA, BASE.base)
    eyes["blocks.0.norm1.weight"] = as_lazy(np.zeros(7, np.float32))
    write_safetensors(hub / "eyes.safetensors", eyes)
    with pytest.raises(ConversionError) as caught:
        open_sources(
            parse_sources(f"bert:{hub / 'words.safetensors'},eva:{hub / 'eyes.safetensors'},t5:{hub / 'bert'}"), SIZES
        )
    problems = "\n".join(caught.value.problems)
    assert f"bert:{hub / 'words.safetensors'}: stray (3,): matches no row" in problems
    assert "position_embeddings.weight: has dtype int8, the model needs one of float32" in problems
    assert "bert.encoder.layer.1.intermediate.dense.weight or" in problems
    assert "blocks.0.norm1.weight: has shape (7,), the model needs (8,)" in problems
    assert f"t5:{hub / 'bert'}: this is not Flan-T5, from the Hugging Face hub: none of its" in problems


def test_missing_weights_are_named_with_their_formats(hub):
    with pytest.raises(ConversionError) as caught:
        open_sources([("t5", hub / "t5")], SIZES)
    problems = caught.value.problems
    assert "vit/class_token: in no source; add eva:PATH or hf:PATH" in problems
    assert "qformer/words: in no source; add bert:PATH" in problems
    assert "t5_proj/bias: in no source; add lavis:PATH or hf:PATH" in problems
    assert len(problems) == len([name for name in FROM_SOURCES if not name.startswith("t5/")])


def test_base_of_another_size(hub):
    other = replace(SIZES, t5=replace(SIZES.t5, width=6))
    write_safetensors(hub / "base.safetensors", random_weights(base_param_shapes(other), 0))
    with pytest.raises(ConversionError, match=r"t5_proj/bias: has shape \(6,\), the model needs \(8,\)"):
        open_sources([("base", hub / "base.safetensors")], SIZES)


@pytest.mark.parametrize(
    ("base", "message"),
    [("", "weights.base is empty"), ("gone.safetensors", "names gone.safetensors, which does not exist")],
)
def test_run_without_its_base(tmp_path, base, message):
    config = to_dict(replace(RUN, weights=WeightsConfig(base=base, start="")))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsFileError, match=message):
        open_sources([("orbax", tmp_path)], SIZES)


@pytest.mark.slow
def test_command_from_end_to_end(tmp_path):
    """A run of the tiny size, exported to Hugging Face's formats and read again."""
    tiny = model_config_of(RUN)
    write_safetensors(tmp_path / "base.safetensors", random_weights(base_param_shapes(tiny), 3))
    weights = open_sources([("base", tmp_path / "base.safetensors")], tiny)
    write_run(tmp_path / "run", replace(weights, trained=random_weights(trainable_param_shapes(tiny), 4)), RUN)
    config = get_preset("shapes")
    summary = convert(f"orbax:{tmp_path / 'run'}", f"hf:{tmp_path / 'hf'}", config, dtype="bfloat16")
    assert re.fullmatch(r"\S+hf: \d\.\d MB from orbax:\S+run", summary)
    frozen = [tensor for name, tensor in open_tensors(tmp_path / "hf").items() if ".block." in name]
    assert {tensor.dtype for tensor in frozen} == {BFLOAT16}
    convert(f"orbax:{tmp_path / 'run'}", f"peft:{tmp_path / 'adapter'}", config)
    summary = convert(
        f"orbax:{tmp_path / 'run'},hf:{tmp_path / 'hf'}", f"base:{tmp_path / 'merged.safetensors'}", config
    )
    assert summary.endswith("adapters are not included")
    merged = open_tensors(tmp_path / "merged.safetensors")
    words = open_tensors(tmp_path / "base.safetensors")
    assert_same(merged, words, ["qformer/words"])
    assert merged["t5/lm_head/kernel"].dtype == BFLOAT16
