"""A small folder of recordings made with PyTorch at unusual sizes, to test `tests.fidelity` with."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert import qformer as qformer_names
from calce_jax.checkpoints.convert import t5 as t5_names
from calce_jax.checkpoints.convert.state_dict import to_torch
from calce_jax.checkpoints.convert.vit import KEY_MAPPING as VIT_NAMES
from calce_jax.config import packaged_path
from calce_jax.models.calce_sizes import QFormerConfig, T5Config, VitConfig
from calce_jax.models.qformer import QFormer
from calce_jax.models.t5 import T5
from calce_jax.models.vit import Vit
from calce_jax.text.tokenizers import load_bert
from tests.helpers import recordings_io
from tests.models.test_qformer import transformers_text, transformers_visual
from tests.models.test_vit import transformers_hidden_states
from tests.training.test_schedule import QVH1, QVH1_RATES

VIT_CONFIG = VitConfig(image_size=12, patch_size=4, width=24, depth=2, heads=3, mlp_width=20)
LARGER_IMAGE_SIZE = 20  # pixels
T5_CONFIG = T5Config(width=12, heads=3, head_width=5, mlp_width=10, encoder_depth=3, decoder_depth=2, vocab=37)
LORA_RANK, SCALING = 2, 1.5
BEAM_SEARCHES = ((1, 6, 1), (3, 9, 1), (2, 7, 4))  # beams, max_new_tokens, min_length
SENTENCES = ("a red circle moves", "a blue square stays to the left", "red")
LINEAR = (".q", ".k", ".v", ".o", ".wi_0", ".wi_1", ".wo", "lm_head")
SRT = "1\n00:00:01,000 --> 00:00:02,500\nHello, there!\n\n2\n00:00:09,000 --> 00:00:10,000\nhello again\n"


def make_recordings(folder: Path) -> Path:
    """Write the recordings to a new folder and return it; needs torch and transformers."""
    folder.mkdir()
    shutil.copytree(packaged_path("calce_jax/assets/tiny/bert"), folder / "tokenizers" / "bert")
    heads = {"01_vit": VIT_CONFIG.heads, "02_qformer": 3, "08_subtitles": 3, "16_later": 2}
    write_json(folder, "config", {group: {"heads": count, "other": "setting"} for group, count in heads.items()})
    _vit(folder)
    _qformer(folder)
    _t5(folder)
    _texts(folder)
    _training(folder)
    return folder


def write_json(folder: Path, name: str, content: Any) -> None:
    """Write `name`.json to a folder."""
    (folder / f"{name}.json").write_text(json.dumps(content))


def _vit(folder: Path) -> None:
    import torch  # noqa: PLC0415

    _, tensors = recordings_io.deterministic_weights(lambda: Vit(VIT_CONFIG, rngs=nnx.Rngs(0)), VIT_NAMES)
    rng = np.random.default_rng(0)
    frames, large = (
        rng.normal(size=(2, side, side, 3)).astype(np.float32) for side in (VIT_CONFIG.image_size, LARGER_IMAGE_SIZE)
    )
    _, *blocks = transformers_hidden_states(VIT_CONFIG, tensors, frames)
    first, grid = tensors["pos_embed"][:, :1], torch.from_numpy(tensors["pos_embed"][:, 1:].reshape(1, 3, 3, -1))
    resized = torch.nn.functional.interpolate(
        grid.permute(0, 3, 1, 2), size=(5, 5), mode="bicubic", align_corners=False
    )
    positions = np.concatenate([first, resized.permute(0, 2, 3, 1).reshape(1, 25, -1).numpy()], axis=1)
    config = VitConfig(
        LARGER_IMAGE_SIZE,
        VIT_CONFIG.patch_size,
        VIT_CONFIG.width,
        VIT_CONFIG.depth,
        VIT_CONFIG.heads,
        VIT_CONFIG.mlp_width,
    )
    *_, larger = transformers_hidden_states(config, {**tensors, "pos_embed": positions}, large)
    weight, bias = rng.normal(size=(2, VIT_CONFIG.width)).astype(np.float32)
    normed = torch.nn.functional.layer_norm(
        torch.from_numpy(blocks[-1]), (VIT_CONFIG.width,), *map(torch.from_numpy, (weight, bias))
    )
    np.savez(
        folder / "01_vit.npz",
        input=frames.transpose(0, 3, 1, 2),
        output=blocks[-1],
        ln_output=normed.numpy(),
        block_norm_eps=1e-6,
        ln_eps=1e-5,
        **{
            f"input{LARGER_IMAGE_SIZE}": large.transpose(0, 3, 1, 2),
            f"output{LARGER_IMAGE_SIZE}": larger,
            f"pos_embed_{LARGER_IMAGE_SIZE}": positions,
        },
        **{f"block{number}_out": block for number, block in enumerate(blocks)},
        **{f"visual_encoder.{name}": tensor for name, tensor in tensors.items()},
        **{"ln_vision.weight": weight, "ln_vision.bias": bias},
    )


def _qformer(folder: Path) -> None:
    bert = load_bert(folder / "tokenizers" / "bert")
    config = QFormerConfig(
        width=12, depth=3, heads=3, mlp_width=10, query_tokens=5, image_width=24, vocab=len(bert), max_positions=16
    )
    names = qformer_names.key_mapping(config.cross_attention_frequency)
    _, tensors = recordings_io.deterministic_weights(lambda: QFormer(config, rngs=nnx.Rngs(0)), names)
    ids = np.zeros((len(SENTENCES), config.max_positions), np.int32)
    for row, sentence in zip(ids, SENTENCES, strict=True):
        words = bert(sentence)["input_ids"]
        row[: len(words)] = words
    image = np.random.default_rng(1).normal(size=(4, 6, config.image_width)).astype(np.float32)
    states = transformers_visual(config, tensors, image)
    text = transformers_text(config, tensors, ids)
    embeddings = tensors.pop("Qformer.bert.embeddings.word_embeddings.weight")
    used = np.unique(ids)
    words = {"word_embedding_ids": used, "word_embedding_rows": embeddings[used]}
    np.savez(
        folder / "02_qformer.npz",
        image_embeds=image,
        visual_last_hidden=states[-1],
        text_input_ids=ids,
        text_attention_mask=ids != 0,
        text_last_hidden_real=text[:, :10],
        text_cls=text[:, 0],
        texts=np.array(SENTENCES),
        **{f"visual_hidden{number}": state for number, state in enumerate(states)},
        **words,
        **tensors,
    )
    _captions(folder, ids, text[:, 0], {name: t for name, t in tensors.items() if "cross" not in name} | words)


def _captions(folder: Path, ids: np.ndarray, states: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """Write the caption selection; the first sentence is the query."""
    del arrays["query_tokens"]
    np.savez(folder / "08_subtitles.npz", **arrays)
    normalised = states / np.linalg.norm(states, axis=1, keepdims=True)
    cosines = (normalised[1:] @ normalised[0]).tolist()
    captions = [{"start": i, "end": i + 1, "text": text} for i, text in enumerate(SENTENCES[1:])]
    sentences = [row[row != 0].tolist() for row in ids]
    choice = {
        "query": SENTENCES[0],
        "subtitles": captions,
        "topk": 5,
        "threshold": -1.0,
        "sims": cosines,
        "selected": [captions[i] for i in np.argsort(cosines)[::-1]],
        "query_ids": sentences[0],
        "subtitle_ids": sentences[1:],
    }
    without_captions = {**choice, "subtitles": [], "sims": None, "subtitle_ids": None}
    without_captions["selected"] = [{"start": -1, "end": -1, "text": "*None*"}]
    srt_captions = [
        {"start": 1.0, "text": "hello there", "end": 2.5},
        {"start": 9.0, "text": "hello again", "end": 10.0},
    ]
    files = {
        "two": {"combined_subtitles": srt_captions, "subtitle_durations": [[1.0, 2.5], [9.0, 10.0]], "error": None},
        "dots": {"error": "ValueError: time data '00:00:01.000' does not match format '%H:%M:%S,%f'"},
        "none": {"error": "FileNotFoundError"},
        "text_filter": [["Hello, World!", "hello world"], ["the", None]],
    }
    (folder / "08_srt").mkdir()
    (folder / "08_srt" / "two.srt").write_text(SRT)
    (folder / "08_srt" / "dots.srt").write_text(SRT.replace(",000 -", ".000 -"))
    write_json(folder, "08_subtitles", {"files": files, "cls_filter": [choice, without_captions]})


def _t5(folder: Path) -> None:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    rng = np.random.default_rng(2)
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, leaf.dtype),
        nnx.state(nnx.eval_shape(lambda: T5(T5_CONFIG, rngs=nnx.Rngs(0)))),
    )
    shapes = {
        name: t.shape
        for name, t in to_torch(t5_names.key_mapping(lora=False), zeros).items()
        if "embed_tok" not in name
    }
    base = {name: rng.normal(scale=0.4, size=shape).astype(np.float32) for name, shape in shapes.items()}
    adapters, merged = {}, {}
    for name, matrix in base.items():
        stem = name.removesuffix(".weight")
        if stem.endswith(LINEAR):
            out, into = matrix.shape
            a, b = rng.normal(scale=0.3, size=(LORA_RANK, into)), rng.normal(scale=0.3, size=(out, LORA_RANK))
            adapters[f"{stem}.lora_A.default.weight"] = a.astype(np.float32)
            adapters[f"{stem}.lora_B.default.weight"] = b.astype(np.float32)
            merged[name] = (matrix + SCALING * b @ a).astype(np.float32)
    x = rng.normal(size=(4, 9, T5_CONFIG.width)).astype(np.float32)
    mask = np.arange(9) < np.array([[9], [6], [7], [4]])
    mask[2, :2] = False  # padded on the left, too
    labels = np.array([[4, 9, 18, 1], [7, 1, -100, -100], [30, 2, 1, -100], [5, 5, 5, 1]])
    arrays: dict[str, np.ndarray] = {"inputs_embeds": x, "attention_mask": mask.astype(np.int64), "labels": labels}
    arrays["logits_hot_ids"] = np.array([0, 1, 7, 30])
    for tag, weights in (("base", base), ("lora", {**base, **merged})):
        model = _transformers_t5(weights)
        inputs = {"inputs_embeds": torch.from_numpy(x), "attention_mask": torch.from_numpy(mask).long()}
        with torch.no_grad():
            out = model(**inputs, labels=torch.from_numpy(labels))
            logits = out.logits.numpy()
            arrays |= {
                f"{tag}_encoder_last_hidden": out.encoder_last_hidden_state.numpy(),
                f"{tag}_loss": np.float64(out.loss),
                f"{tag}_logits_b0": logits[0],
                f"{tag}_logits_hot": logits[:, :, arrays["logits_hot_ids"]],
                f"{tag}_logits_logsumexp": torch.logsumexp(out.logits, -1).numpy(),
                f"{tag}_argmax": logits.argmax(-1),
            }
            for beams, max_new_tokens, min_length in BEAM_SEARCHES:
                result = _search(model, inputs, beams, max_new_tokens, min_length)
                name = f"{tag}_gen_b{beams}_new{max_new_tokens}_min{min_length}"
                arrays[name] = result.sequences.numpy()
                if beams > 1:
                    arrays[f"{name}_scores"] = result.sequences_scores.numpy()
    arrays["act_x"] = np.linspace(-4, 4, 9, dtype=np.float32)
    arrays["act_y_reference"] = torch.nn.functional.gelu(torch.from_numpy(arrays["act_x"])).numpy()
    arrays["rel_positions"] = np.arange(-150, 151, 3)
    attention = transformers.models.t5.modeling_t5.T5Attention
    for name, both_ways in (("bidirectional", True), ("unidirectional", False)):
        distance = torch.from_numpy(arrays["rel_positions"])
        arrays[f"rel_bucket_{name}"] = attention._relative_position_bucket(distance, bidirectional=both_ways).numpy()
    arrays |= {f"t5_model.{name}": tensor for name, tensor in base.items()}
    arrays |= {f"t5_model.base_model.model.{name}": tensor for name, tensor in adapters.items()}
    np.savez(folder / "03_t5.npz", **arrays)
    write_json(folder, "03_t5_meta", {"transformers": transformers.__version__, "lora_scaling": SCALING})
    beam_inputs = torch.from_numpy(rng.normal(size=(6, 5, T5_CONFIG.width)).astype(np.float32))
    full_inputs = {"inputs_embeds": beam_inputs, "attention_mask": torch.ones(beam_inputs.shape[:2], dtype=torch.long)}
    result = _search(_transformers_t5(base), full_inputs, 5, 8, 1)
    version = "_".join(transformers.__version__.split(".")[:2])
    np.savez(
        folder / "03_t5_beam6.npz",
        inputs_embeds=beam_inputs.numpy(),
        **{
            f"seq_transformers_{version}": result.sequences.numpy(),
            f"score_{version}": result.sequences_scores.numpy(),
        },
    )


def _transformers_t5(weights: dict[str, np.ndarray]) -> Any:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    config = transformers.T5Config(
        vocab_size=T5_CONFIG.vocab,
        d_model=T5_CONFIG.width,
        d_kv=T5_CONFIG.head_width,
        d_ff=T5_CONFIG.mlp_width,
        num_layers=T5_CONFIG.encoder_depth,
        num_decoder_layers=T5_CONFIG.decoder_depth,
        num_heads=T5_CONFIG.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    config.dense_act_fn = "gelu"
    config.tie_word_embeddings = False  # transformers 5 ignores the argument, but reads this attribute
    model = transformers.T5ForConditionalGeneration(config).eval()
    tied_weights = {f"{tower}.embed_tokens.weight": weights["shared.weight"] for tower in ("encoder", "decoder")}
    model.load_state_dict(
        {name: torch.from_numpy(tensor.copy()) for name, tensor in {**weights, **tied_weights}.items()}
    )
    return model


def _search(model: Any, inputs: dict[str, Any], beams: int, max_new_tokens: int, min_length: int) -> Any:
    return model.generate(
        **inputs,
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        min_length=min_length,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )


def _texts(folder: Path) -> None:
    """Write the results of the original for a few answers and scores, as recorded from it."""
    cases = [
        {"s": "[[7, 9], [1, 2]]", "post_process_150": {"out": [[1, 2], [7, 9]]}},
        {"s": "[[160, 170]]", "post_process_tensor150": {"out": [[150, 160]]}},
        {"s": "[[0, 150150]]", "post_process_150": {"error": "ValueError", "msg": "of the original"}},
        {"s": "[[0, 1], 5, [2, 3]]", "moment_str_to_list": {"error": "TypeError", "msg": "of the original"}},
        {"s": "nothing", "post_process_None": {"out": [[-1, -1]]}, "moment_str_to_list": {"out": [[-1, -1]]}},
    ]
    overlap = [{"gt": "[[10, 20]]", "pred": [[15, 25]], "n_frms": 150, "out": 1 / 3}]
    write_json(folder, "09_postprocess", {"cases": cases, "get_iou": overlap})
    thresholds = [str(round(0.5 + 0.05 * i, 2)) for i in range(10)]
    perfect = dict.fromkeys(thresholds, 100.0)
    row = {"qid": "q0", "pred_relevant_windows": [[0, 10]], "relevant_windows": [[0, 10]]}
    scores = {"R1": perfect, "mAP": {**perfect, "average": 100.0}, "mIoU": 1.0, "R1-avg": 100.0, "invalid_pred_num": 0}
    synthetic = [
        {"name": "exact", "submission": [row], "result": {"full": scores}, "error": None},
        {"name": "none", "submission": [{**row, "pred_relevant_windows": []}], "error": "TypeError: not iterable"},
    ]
    write_json(folder, "10_metrics_synthetic", synthetic)


def _training(folder: Path) -> None:
    """Write recorded learning rates of the original, and parameter groups of a model with unequal depths."""
    run = {"init_lr": QVH1["peak"], "min_lr": 0, "warmup_lr": 1e-8, "warmup_steps": QVH1["warmup_steps"]}
    rates = {
        "iters_per_epoch_4gpu": QVH1["steps_per_epoch"],
        "run": {**run, "max_epoch": QVH1["epochs"]},
        "sampled_first3epochs": [list(rate) for rate in QVH1_RATES],
        "epoch_first_lr": [],
        "epoch_last_lr": [],
    }
    attention, mlp = [f"SelfAttention.{x}" for x in "qkvo"], [f"DenseReluDense.{x}" for x in ("wi_0", "wi_1", "wo")]
    cross = [f"EncDecAttention.{x}" for x in "qkvo"]
    linears = ["lm_head"]
    for tower, depth, layers in (("encoder", 3, (attention, mlp)), ("decoder", 2, (attention, cross, mlp))):
        for block in range(depth):
            for number, names in enumerate(layers):
                linears += [f"{tower}.block.{block}.layer.{number}.{name}" for name in names]
    adapters = [f"t5_model.base_model.model.{name}.lora_{x}.default.weight" for name in linears for x in "AB"]
    exempt = ["ln_vision.weight", "ln_vision.bias", "query_proj.bias", "t5_proj.bias"]
    matrices = ["query_proj.weight", "t5_proj.weight"]
    groups = {
        "n": [len(adapters) + 2, 4],
        "no_decay": exempt,
        "decay_non_lora": matrices,
        "decay_lora_count": len(adapters),
        "trainable": [*exempt, *matrices, *adapters],
    }
    frozen = {
        **groups,
        "no_decay": [*exempt, "Qformer.bert.embeddings.LayerNorm.weight"],
        "decay_non_lora": ["query_tokens"],
    }
    write_json(
        folder, "12_lr_optim", {"lr": {"first": rates}, "optim": {"qformer_freeze_lora_item": groups, "lora": frozen}}
    )
