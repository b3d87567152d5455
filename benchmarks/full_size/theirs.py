"""The same computations with `transformers` and `peft` (torch), from the published files, not from converted ones."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_outputs import BaseModelOutput

from benchmarks.full_size.material import first_frames, load_arrays, save_arrays
from benchmarks.full_size.ours import ANSWER_TOKENS, BEAMS
from benchmarks.full_size.workspace import Dtype, Workspace
from calce_jax.config import LoraConfig
from calce_jax.distributed.target import cpu_has_bfloat16
from calce_jax.models.vit import CLIP_MEAN, CLIP_STD

# transformers has one epsilon for all norms of the vision tower; LAVIS's `ln_vision` has another.
LN_VISION_EPS = 1e-5
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default}
ADAPTED = ["q", "k", "v", "o", "wi_0", "wi_1", "wo", "lm_head"]


class Float32Products(TorchDispatchMode):
    """Products of bfloat16 are computed in float32 and rounded once, as by instructions for bfloat16.

    torch's own fallback on a CPU without them takes hours: 0.09 GFLOP/s in the gradient of a linear layer of T5-XL.
    """

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation of torch."""
        if function in PRODUCTS and args[0].dtype == torch.bfloat16:
            widened = [arg.float() if isinstance(arg, torch.Tensor) else arg for arg in args]
            return function(*widened, **(kwargs or {})).to(torch.bfloat16)
        return function(*args, **(kwargs or {}))


def _products() -> AbstractContextManager[Any]:
    """Return what torch's products run in: nothing, where the CPU has instructions for bfloat16."""
    return nullcontext() if cpu_has_bfloat16() else Float32Products()


@torch.no_grad()
def compute_vision(workspace: Workspace, dtype: Dtype) -> None:
    """Write what `ours.compute_vision` does; the prompt in float32 has our layout."""
    torch_dtype = getattr(torch, dtype)
    config: Any = transformers.Blip2Config.from_pretrained(workspace.blip2)
    trained = torch.load(workspace.checkpoint(1), weights_only=True, mmap=True)["model"]
    tower = _build(
        workspace.blip2, lambda: transformers.Blip2VisionModel(config.vision_config), "vision_model.", torch_dtype
    )
    pixels = torch.from_numpy(first_frames(workspace, dtype)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    hidden = tower.embeddings(((pixels - mean) / std).to(torch_dtype))
    with _products():
        tokens = tower.encoder(hidden).last_hidden_state
    del tower
    qformer = _build(
        workspace.blip2, lambda: transformers.Blip2QFormerModel(config.qformer_config), "qformer.", torch_dtype
    )
    (query_tokens,) = (tensor for name, tensor in _tensors(workspace.blip2, "query_tokens"))
    norm = torch.nn.functional.layer_norm(
        tokens.float(), tokens.shape[-1:], trained["ln_vision.weight"], trained["ln_vision.bias"], LN_VISION_EPS
    ).to(torch_dtype)
    with _products():
        queries = qformer(
            query_embeds=query_tokens.to(torch_dtype).expand(len(norm), -1, -1), encoder_hidden_states=norm
        ).last_hidden_state
    arrays = {"tokens": tokens.float().numpy(), "queries": queries.float().numpy()}
    if dtype == "float32":
        arrays["embeddings"] = _prompt_embeddings(workspace, queries, trained).numpy()
    save_arrays(workspace, f"theirs_vision_{dtype}", arrays)


def compute_gradients(workspace: Workspace, dtype: Dtype) -> None:
    """Write what `ours.compute_gradients` does, from our prompt in bfloat16, from theirs in float32."""
    model = _language_model(workspace, getattr(torch, dtype)).train()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):  # T5's attention calls the function
            setattr(module, "dropout", 0.0)  # noqa: B010  (its type is a module's)
    prompt = load_arrays(workspace, "ours_vision_float32")
    side = "theirs" if dtype == "float32" else "ours"
    x = torch.from_numpy(load_arrays(workspace, f"{side}_vision_float32")["embeddings"])[None].to(model.dtype)
    with _products():
        output = model(
            inputs_embeds=x,
            attention_mask=torch.ones(x.shape[:2], dtype=torch.long),
            labels=torch.from_numpy(prompt["labels"]).long()[None],
        )
        output.loss.backward()
    gradients = {
        f"gradient:{name.removeprefix('base_model.model.')}": p.grad.float().numpy()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    states = output.encoder_last_hidden_state[0].detach().float().numpy()
    save_arrays(
        workspace,
        f"theirs_gradients_{dtype}",
        {"states": states, "loss": np.array(output.loss.item(), np.float32), **gradients},
    )


@torch.no_grad()
def compute_beams(workspace: Workspace, dtype: Dtype) -> None:
    """Write what `ours.compute_beams` does, from the same states."""
    model = _language_model(workspace, getattr(torch, dtype)).eval()
    states = torch.from_numpy(load_arrays(workspace, f"ours_gradients_{dtype}")["states"])[None].to(model.dtype)
    with _products():
        found = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=torch.ones(states.shape[:2], dtype=torch.long),
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            do_sample=False,
            max_new_tokens=ANSWER_TOKENS,
            return_dict_in_generate=True,
            output_scores=True,
        )
    tokens = found.sequences[:, 1:].numpy()
    tokens = np.pad(tokens, ((0, 0), (0, ANSWER_TOKENS - tokens.shape[1])))
    # The score is the log-probability divided by the number of generated tokens.
    lengths = np.maximum((tokens != 0).sum(axis=1), 1)
    log_probability = found.sequences_scores.float().numpy() * lengths
    save_arrays(
        workspace, f"theirs_beams_{dtype}", {"tokens": tokens.astype(np.int32), "log_probability": log_probability}
    )


def _language_model(workspace: Workspace, dtype: torch.dtype) -> Any:
    """Return Flan-T5 of the published BLIP-2 with the adapters of the published checkpoint."""
    config: Any = transformers.Blip2Config.from_pretrained(workspace.blip2)
    t5 = _build(
        workspace.blip2,
        lambda: transformers.T5ForConditionalGeneration(config.text_config),
        "language_model.",
        dtype,
    )
    lora = LoraConfig()
    model = peft.get_peft_model(
        t5, peft.LoraConfig(r=lora.rank, lora_alpha=int(lora.alpha), lora_dropout=0.0, target_modules=ADAPTED)
    )
    trained = torch.load(workspace.checkpoint(1), weights_only=True, mmap=True)["model"]
    adapters = {name.removeprefix("t5_model."): tensor for name, tensor in trained.items() if "lora_" in name}
    missing = model.load_state_dict(adapters, strict=False)
    if missing.unexpected_keys or any("lora_" in name for name in missing.missing_keys):
        raise ValueError(f"adapters have other names here: {missing.unexpected_keys[:3]}")
    return model


def _prompt_embeddings(workspace: Workspace, queries: torch.Tensor, trained: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the embeddings (L E) of the prompt that `ours` laid out."""
    prompt = load_arrays(workspace, "ours_vision_float32")
    compressed = torch.nn.functional.linear(
        queries.transpose(1, 2), trained["query_proj.weight"], trained["query_proj.bias"]
    ).transpose(1, 2)
    frames = torch.nn.functional.linear(
        torch.cat([queries, compressed], dim=1), trained["t5_proj.weight"], trained["t5_proj.bias"]
    ).flatten(0, 1)
    (words,) = (tensor for _, tensor in _tensors(workspace.blip2, "language_model.shared.weight"))
    is_text, token_id, frame_index = (torch.from_numpy(prompt[name]) for name in ("is_text", "token_id", "frame_index"))
    return torch.where(is_text[:, None], words[token_id.long()], frames[frame_index.long()])


def _build(folder: Path, make: Callable[[], Any], prefix: str, dtype: torch.dtype) -> Any:
    """Return a module with the tensors of a published folder whose names begin with `prefix`; nothing is held twice."""
    with torch.device("meta"):
        module = make()
    state = {name.removeprefix(prefix): tensor.to(dtype) for name, tensor in _tensors(folder, prefix)}
    module.load_state_dict(state, strict=False, assign=True)
    if hasattr(module, "shared"):
        module.encoder.embed_tokens = module.decoder.embed_tokens = module.shared
    unset = [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]
    if prefix == "vision_model.":  # `ln_vision` is that of the checkpoint
        unset = [name for name in unset if not name.startswith("post_layernorm")]
    if unset:
        raise ValueError(f"{folder} lacks {unset[:3]}")
    return module.eval().requires_grad_(False)


def _tensors(folder: Path, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a sharded folder whose names begin with `prefix`."""
    index = folder / "model.safetensors.index.json"
    names = (
        json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        if index.is_file()
        else ["model.safetensors"]
    )
    for name in sorted(set(names)):
        with safe_open(folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                if key.startswith(prefix):
                    yield key, file.get_tensor(key)
