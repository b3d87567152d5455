"""Folders in Hugging Face's layout: BLIP-2 for transformers and an adapter for peft, written; the size of a BLIP-2."""

import json
from pathlib import Path
from typing import Any

from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, T5Config

from calce_jax.checkpoints.convert import blip2, calce
from calce_jax.checkpoints.convert.mapping import add_prefix, mapping_rows, rename_keys
from calce_jax.checkpoints.convert.reader import WeightsFileError
from calce_jax.checkpoints.convert.state_dict import LazyArray, lazy_state_dict
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.checkpoints.convert.writer import atomic_new_dir, write_safetensors, write_shards
from calce_jax.config import ModelSize
from calce_jax.errors import UserError
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.presets.sizes import SIZES
from calce_jax.storage.text_files import read_text

FLAN_T5_REPOS = {"full": "google/flan-t5-xl", "full_xxl": "google/flan-t5-xxl", "small": "google/flan-t5-small"}
# Placeholder of an image in the prompts of Hugging Face's BLIP-2: the first id that T5's tokenizer does not use.
IMAGE_TOKEN_ID = 32100
SAFETENSORS_METADATA = {"format": "pt"}  # required by transformers


def blip2_state_dict(weights: Weights) -> dict[str, LazyArray]:
    """Return the state dict of transformers' `Blip2ForConditionalGeneration`, adapters merged, without tied names.

    The Q-Former's text branch and `query_proj` do not exist there and are left out.
    """
    rows = mapping_rows(blip2.hf_mapping(weights.model_config.qformer.cross_attention_frequency))
    param_names, merged = {param for row in rows for param in row.param_names}, weights.merge_lora()
    return lazy_state_dict(rows, {name: merged[name] for name in merged if name in param_names}, tied=False)


def blip2_config(model_config: CalceConfig) -> dict[str, Any]:
    """Return the content of `config.json` for `blip2_state_dict`.

    transformers has one epsilon for all norms of the vision tower, so `ln_vision` gets 1e-6 there instead of 1e-5.
    """
    vit, qformer, t5 = model_config.vit, model_config.qformer, model_config.t5
    vision_config = Blip2VisionConfig(
        hidden_size=vit.width,
        intermediate_size=vit.mlp_width,
        num_hidden_layers=vit.depth,
        num_attention_heads=vit.heads,
        image_size=vit.image_size,
        patch_size=vit.patch_size,
        hidden_act="gelu",
        layer_norm_eps=vit.eps,
        qkv_bias=True,
    )
    qformer_config = Blip2QFormerConfig(
        vocab_size=qformer.vocab,
        hidden_size=qformer.width,
        num_hidden_layers=qformer.depth,
        num_attention_heads=qformer.heads,
        intermediate_size=qformer.mlp_width,
        hidden_dropout_prob=qformer.dropout_rate,
        attention_probs_dropout_prob=qformer.dropout_rate,
        max_position_embeddings=qformer.max_positions,
        layer_norm_eps=qformer.eps,
        cross_attention_frequency=qformer.cross_attention_frequency,
        encoder_hidden_size=qformer.image_width,
    )
    text_config = T5Config(
        vocab_size=t5.vocab,
        d_model=t5.width,
        d_kv=t5.head_width,
        d_ff=t5.mlp_width,
        num_layers=t5.encoder_depth,
        num_decoder_layers=t5.decoder_depth,
        num_heads=t5.heads,
        dropout_rate=t5.dropout_rate,
        layer_norm_epsilon=t5.eps,
        # transformers reads "gated-gelu" as the tanh approximation; CALCE has the exact GELU, which has this name.
        feed_forward_proj="gated-gelu_python",
    )
    config = Blip2Config(
        vision_config=vision_config.to_dict(),
        qformer_config=qformer_config.to_dict(),
        text_config=text_config.to_dict(),
        num_query_tokens=qformer.query_tokens,
        image_token_index=min(IMAGE_TOKEN_ID, t5.vocab - 1),
    ).to_dict()
    # transformers defaults to the first T5, with a head tied to the embedding and scaled decoder outputs.
    untied = {"tie_word_embeddings": False}
    config["text_config"] |= untied | {"scale_decoder_outputs": False, "decoder_start_token_id": 0}
    return config | untied | {"architectures": ["Blip2ForConditionalGeneration"]}


def write_blip2(path: Path, weights: Weights) -> None:
    """Write a folder that `Blip2ForConditionalGeneration.from_pretrained` loads: safetensors and `config.json`.

    Raises:
      OSError: the folder cannot be written; no partial folder is left.
    """
    tensors = blip2_state_dict(weights)
    config = blip2_config(weights.model_config) | {"dtype": str(tensors["language_model.lm_head.weight"].dtype)}
    with atomic_new_dir(path, num_bytes=sum(tensor.nbytes for tensor in tensors.values())) as tmp_dir:
        write_shards(tmp_dir, tensors, SAFETENSORS_METADATA)
        _write_json(tmp_dir / "config.json", config)


def adapter_state_dict(weights: Weights) -> dict[str, LazyArray]:
    """Return T5's LoRA adapters with the names of peft's files, in float32.

    Raises:
      ConversionError: the weights have no adapters.
    """
    rows = rename_keys(
        add_prefix(calce.adapter_rows(), "base_model.model.", "t5/"), lambda name: name.replace(".default.", ".")
    )
    trainable = weights.trainable_params()
    return lazy_state_dict(rows, {name: trainable[name] for name in trainable if name.startswith("t5/")})


def read_blip2_size(folder: Path) -> ModelSize:
    """Return the size of CALCE that a BLIP-2 is part of, from widths and depths in its `config.json`.

    Raises:
      WeightsFileError: the file is missing or damaged, or of a BLIP-2 that CALCE is not made of.
    """
    path, remedy = folder / "config.json", "fetch the whole model again"
    try:
        config: Any = Blip2Config(**json.loads(read_text(path, "sizes", remedy, WeightsFileError)))
        vision, qformer, text = config.vision_config, config.qformer_config, config.text_config
        found = (vision.hidden_size, vision.num_hidden_layers, qformer.hidden_size, qformer.num_hidden_layers)
        found += (text.d_model, text.num_layers)
    except UserError:
        raise
    except Exception as error:  # transformers raises many types of its own
        message = " ".join(str(error).split())
        raise WeightsFileError(f"{path}: not the config of a BLIP-2 ({message:.200})", remedy) from error
    for size in SIZES:
        # Vocabularies are not compared.
        model = CalceConfig.from_name(size, None, "float32", t5_vocab=1, bert_vocab=1)
        sizes = (model.vit.width, model.vit.depth, model.qformer.width, model.qformer.depth)
        if found == (*sizes, model.t5.width, model.t5.encoder_depth):
            return size
    raise WeightsFileError(
        f"{path}: widths and depths {found} are those of no size of CALCE", f"choose a BLIP-2 of {', '.join(SIZES)}"
    )


def write_adapter(path: Path, weights: Weights, size: str) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` adds to Flan-T5: the adapter and its config.

    The projections and `ln_vision`, trained with the adapter, are not part of T5 and are left out.

    Args:
      path: the folder.
      weights: with adapters.
      size: a size of `FLAN_T5_REPOS`, which gives `base_model_name_or_path`; None is written for other sizes.

    Raises:
      ConversionError: the weights have no adapters.
      OSError: the folder cannot be written; no partial folder is left.
    """
    tensors, lora = adapter_state_dict(weights), weights.model_config.lora
    assert lora is not None  # otherwise `adapter_state_dict` raises
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": FLAN_T5_REPOS.get(size),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    with atomic_new_dir(path) as tmp_dir:
        write_safetensors(tmp_dir / "adapter_model.safetensors", tensors, SAFETENSORS_METADATA)
        _write_json(tmp_dir / "adapter_config.json", config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
