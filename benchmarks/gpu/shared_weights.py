"""Random weights made on the device, once, for both sides: torch draws them, jax takes them through DLPack.

At full size they are 4 B parameters, 8 GB in bfloat16. They never pass the host or a disk. torch's model has a copy in
its own layout, without which its linear layers would be slower.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import torch
import transformers
from flax import nnx

from benchmarks.models import as_calce, weight_scale
from benchmarks.paired import BenchmarkSettings
from calce_jax.checkpoints.convert.blip2 import hf_mapping
from calce_jax.checkpoints.convert.huggingface import blip2_config
from calce_jax.checkpoints.convert.mapping import LAYER_PLACEHOLDER, MappingRow, mapping_rows
from calce_jax.checkpoints.convert.weights import base_param_shapes, is_frozen, trainable_param_shapes
from calce_jax.config import AttentionImplementation
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig


class SharedModels:
    """Our model and transformers' BLIP-2 with the same random weights, on one device.

    Args:
      model_config: sizes, with adapters.
      settings: device and dtype of the frozen weights; trainable ones are float32 on our side.
    """

    def __init__(self, model_config: CalceConfig, settings: BenchmarkSettings):
        self.model_config, self.settings = replace(model_config, dtype=settings.dtype), settings
        self._calces: dict[AttentionImplementation, Calce] = {}

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights by the names of ours: `base_param_shapes`, and adapters as "t5/.../a" and "t5/.../b"."""
        shapes = {**trainable_param_shapes(self.model_config), **base_param_shapes(self.model_config)}
        generator = torch.Generator(self.settings.torch_device).manual_seed(0)
        tensors = {}
        for name in sorted(shapes):
            shape, dtype = shapes[name].shape, self.settings.dtype if is_frozen(name) else "float32"
            scale = weight_scale(name, shape, self.model_config)
            tensors[name] = draw_tensor(shape, scale, dtype, self.settings, generator)
        return tensors

    def calce(self, attention: AttentionImplementation = "xla") -> Calce:
        """Return our model without adapters."""
        if attention not in self._calces:
            self._calces[attention] = self.new_calce(attention, adapters=False)
        return self._calces[attention]

    def new_calce(self, attention: AttentionImplementation = "xla", *, adapters: bool) -> Calce:
        """Return a model whose trainable parameters are its own, so that a program may overwrite them."""
        lora = self.model_config.lora if adapters else None
        model_config = replace(self.model_config, lora=lora).with_attention(attention)
        model = nnx.eval_shape(lambda: Calce(model_config, rngs=nnx.Rngs(0)))
        state = nnx.state(model)
        leaves = {}
        for name in named_leaves(state):
            shared = name.replace("/base/", "/")
            array = to_jax(self.tensors[shared])
            leaves[name] = array if is_frozen(shared) else jnp.array(array, copy=True)
        nnx.update(model, with_leaves(state, leaves))
        return model

    @cached_property
    def blip2(self) -> Any:
        """The model of transformers, in eval mode and in `settings.dtype`, without adapters."""
        config = transformers.Blip2Config(**blip2_config(self.model_config))
        model = build_torch(transformers.Blip2ForConditionalGeneration, config, self.settings)
        # transformers ties the head of every T5 to its embedding, whatever the config says; Flan-T5's is not.
        head = model.language_model.lm_head
        head.weight = torch.nn.Parameter(torch.empty_like(head.weight))
        rows = mapping_rows(hf_mapping(self.model_config.qformer.cross_attention_frequency))
        fill_torch(model, rows, self.tensors)
        return as_calce(model)


def draw_tensor(
    shape: tuple[int, ...], scale: float, dtype: str, settings: BenchmarkSettings, generator: torch.Generator
) -> torch.Tensor:
    """Return normal random numbers of a standard deviation on the device; ones where `scale` is 0."""
    options = {"device": settings.torch_device, "dtype": getattr(torch, dtype)}
    if not scale:
        return torch.ones(shape, **options)
    return torch.randn(shape, generator=generator, **options).mul_(scale)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """Return the same memory as an array of jax, which keeps the tensor alive."""
    return jax.dlpack.from_dlpack(tensor)


def build_torch(model_class: Any, config: Any, settings: BenchmarkSettings) -> Any:
    """Return a model of transformers that is made on the device, with attention by torch's sdpa."""
    transformers.logging.set_verbosity_error()
    with torch.device(settings.torch_device):
        return model_class._from_config(config, dtype=getattr(torch, settings.dtype), attn_implementation="sdpa")


def fill_torch(model: Any, rows: Iterable[MappingRow], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy weights of ours into a model of transformers.

    Args:
      model: whose parameters are overwritten.
      rows: of its mapping.
      tensors: weights by the names of ours; those without a row are not read.

    Raises:
      ValueError: a parameter of the model got no weight, or two.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    filled = set()
    with torch.no_grad():
        for row in rows:
            arrays = tuple(tensors[name] for name in row.param_names)
            for index in range(arrays[0].shape[0]) if row.is_stacked else (None,):
                layer = arrays if index is None else tuple(array[index] for array in arrays)
                layer_number = str(0 if index is None else index * row.layer_stride)
                name = row.torch_name.replace(LAYER_PLACEHOLDER, layer_number)
                parameter = parameters[name]
                if parameter.data_ptr() in filled:
                    raise ValueError(f"two weights for {name}, which is tied")
                parameter.copy_(torch_layout(row, layer))
                filled.add(parameter.data_ptr())
    if missing := [name for name, parameter in parameters.items() if parameter.data_ptr() not in filled]:
        raise ValueError(f"no weight for {', '.join(missing)}")


def torch_layout(row: MappingRow, arrays: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the tensor of a row; as `row.transform.to_torch`, which is numpy's, for tensors on a device."""
    if row.torch_name.endswith("qkv.weight"):
        return torch.cat([kernel.T for kernel in arrays])
    if row.torch_name.endswith("qkv.bias"):
        return torch.cat([arrays[0], torch.zeros_like(arrays[0]), arrays[1]])
    if row.torch_name.endswith("patch_embedding.weight"):
        side = round((len(arrays[0]) / 3) ** 0.5)
        return arrays[0].reshape(side, side, 3, -1).permute(3, 2, 0, 1)
    if row.torch_name.endswith(("conv1.weight", "conv2.weight")):
        return arrays[0].reshape(3, len(arrays[0]) // 3, -1).permute(2, 1, 0)
    # Copies, transposes and new axes, which are written alike for both.
    return row.transform.to_torch(arrays)  # pyright: ignore[reportArgumentType, reportReturnType]
