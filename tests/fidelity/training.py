"""12 and 14: learning rates, groups of trained and decayed parameters, and parameter counts at full size."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert import calce as calce_names
from calce_jax.checkpoints.convert.mapping import LAYER_PLACEHOLDER, KeyMapping, MappingRow
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.models.structure import param_label
from calce_jax.training.optimizer import has_weight_decay
from calce_jax.training.schedule import learning_rate
from tests.fidelity import sizes
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Case, Group

# Additions in another order: one or two roundings of float64.
RATE_TOLERANCE = 1e-14
CALCE_TASK = "qformer_freeze_lora_item"


def rates_and_groups(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the learning rate of every recorded step, also after resuming, and the groups of parameters."""
    recorded = folder.json("12_lr_optim")
    rates = Group("12_lr_optim/rates", RATE_TOLERANCE)
    yield rates
    for name, expected in recorded["lr"].items():
        run, per_epoch = expected["run"], _value_like(expected, r"iters_per_epoch_\d+gpu")
        sampled = _value_like(expected, r"sampled_first\d+epochs?")
        schedule = {
            "steps_per_epoch": per_epoch,
            "epochs": run["max_epoch"],
            "peak": run["init_lr"],
            "floor": float(run["min_lr"]),
            "warmup_from": run["warmup_lr"],
            "warmup_steps": run["warmup_steps"],
            "behaviour": "reference",
        }
        with rates.case(name) as case:
            steps = [epoch * per_epoch + within for epoch, within, _ in sampled]
            theirs = [rate for *_, rate in sampled]
            for epoch, pair in enumerate(zip(expected["epoch_first_lr"], expected["epoch_last_lr"], strict=True)):
                steps += [epoch * per_epoch, (epoch + 1) * per_epoch - 1]
                theirs += pair
            _compare_rates(case, learning_rate(np.array(steps), **schedule), theirs)
        for key in expected:
            if key_match := re.fullmatch(r"fresh_scheduler_resumed_at_epoch(\d+)", key):
                with rates.case(f"{name}, resumed at epoch {key_match[1]}") as case:
                    steps = [epoch * per_epoch + within for epoch, within, _ in expected[key]]
                    ours = learning_rate(
                        np.array(steps), **schedule, first_step=int(key_match[1]) * schedule["steps_per_epoch"]
                    )
                    _compare_rates(case, ours, [rate for *_, rate in expected[key]])

    groups = Group("12_lr_optim/groups")
    yield groups
    for task, expected in recorded["optim"].items():
        with groups.case(task) as case:
            _compare_groups(case, expected, all_groups=task == CALCE_TASK)
    if others := [task for task in recorded["optim"] if task != CALCE_TASK]:
        groups.add_note(f"of {', '.join(others)}, which train other parameters, only weight decay is compared")


def _value_like(recorded: Mapping[str, Any], pattern: str) -> Any:
    """Return the value whose name, in which there is a number, matches a regular expression."""
    for name, value in recorded.items():
        if re.fullmatch(pattern, name):
            return value
    raise KeyError(f"no {pattern} is recorded")


def _compare_rates(case: Case, ours: np.ndarray, theirs: list[float]) -> None:
    """Compare each rate relative to itself, as rates span five orders of magnitude."""
    expected = np.array(theirs)
    case.close(ours / np.where(expected, expected, 1.0), np.where(expected, 1.0, 0.0))


def _compare_groups(case: Case, expected: Mapping[str, Any], *, all_groups: bool) -> None:
    decaying = set(expected["decay_non_lora"])
    mapping = calce_names.key_mapping(lora=True)
    for name in sorted({*expected["no_decay"], *decaying}):
        path = _param_path(mapping, name)
        if path is not None:
            case.same(has_weight_decay(path), name in decaying, f"{name} decays:")
    if not all_groups:
        return
    names = expected["trainable"]
    trained = _trained_paths(names)
    case.same(sorted(trained), sorted(names), "trained parameters")
    exempt = sorted(name for name, path in trained.items() if not has_weight_decay(path))
    case.same(exempt, sorted(expected["no_decay"]), "without decay")
    case.same([len(trained) - len(exempt), len(exempt)], expected["n"], "sizes of the groups")
    case.same(sum("lora_" in name for name in trained), expected["decay_lora_count"], "adapters")


def _param_path(mapping: KeyMapping, name: str) -> tuple[str, ...] | None:
    """Return the path of the Flax parameter for a PyTorch name, or None if there is none."""
    for row in mapping:
        pattern = re.escape(row.torch_name).replace(re.escape(LAYER_PLACEHOLDER), r"\d+")
        if isinstance(row, MappingRow) and re.fullmatch(pattern, name):
            return tuple(row.param_names[0].split("/"))
    return None


def _trained_paths(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the paths of trained parameters by PyTorch name, of a T5 as deep as the one with the given names."""
    prefix = "t5_model.base_model.model."
    empty_tensors = dict.fromkeys(names, np.zeros(0))
    depths = [sizes.count_layers(empty_tensors, f"{prefix}{tower}.block.") for tower in ("encoder", "decoder")]
    config = CalceConfig(
        VitConfig(image_size=4, patch_size=4, width=4, depth=1, heads=1, mlp_width=4),
        QFormerConfig(width=4, depth=2, heads=1, mlp_width=4, query_tokens=2, image_width=4, vocab=4, max_positions=4),
        T5Config(4, 1, 4, 4, *depths, vocab=4),
        LoraConfig(rank=1),
        compressed_query_tokens=1,
    )
    leaves = named_leaves(nnx.state(nnx.eval_shape(lambda: Calce(config, rngs=nnx.Rngs(0)))))
    trained: dict[str, tuple[str, ...]] = {}
    for row in calce_names.key_mapping(lora=True):
        if not isinstance(row, MappingRow) or param_label(tuple(row.param_names[0].split("/"))) != "trainable":
            continue
        layers = leaves[row.param_names[0]].shape[0] if row.is_stacked else 1
        trained |= {
            row.torch_name.replace(LAYER_PLACEHOLDER, str(i)): tuple(row.param_names[0].split("/"))
            for i in range(layers)
        }
    return trained


def counts(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the parameter counts of the sub-models, at the sizes of the settings or else of the published model."""
    group = Group("14_param_counts")
    yield group
    recorded = folder.json("14_param_counts")
    config = sizes.calce(folder.optional_settings("14_param_counts"))
    leaves = named_leaves(nnx.state(nnx.eval_shape(lambda: Calce(config, rngs=nnx.Rngs(0)))))
    numbers = {name: int(np.prod(leaf.shape)) for name, leaf in leaves.items()}

    def total(*starts: str) -> int:
        return sum(number for name, number in numbers.items() if name.startswith(starts))

    adapters = {name: number for name, number in numbers.items() if name.endswith(("/a", "/b"))}
    stacked = {name: leaves[name].shape[0] if leaves[name].ndim > 2 else 1 for name in adapters if name.endswith("/a")}
    text_only = ("qformer/words", "qformer/positions", "qformer/blocks/text_mlp")
    ours = {
        "visual_encoder": total("vit/"),
        "vit_mlp_hidden": config.vit.mlp_width,
        "ln_vision": total("ln_vision/"),
        "Qformer.bert": total("qformer/") - total("qformer/queries"),
        "Qformer.bert_text_only(word/pos emb + intermediate/output)": total(*text_only),
        "query_tokens": total("qformer/queries"),
        "query_proj": total("query_proj/"),
        "t5_proj": total("t5_proj/"),
        "t5_model": total("t5/") - sum(adapters.values()),
        "t5_lm_head": total("t5/lm_head/base"),
        "t5_shared": total("t5/shared"),
        "lora_trainable": sum(adapters.values()),
        "lora_modules": sum(stacked.values()),
        "lora_lm_head": adapters["t5/lm_head/a"] + adapters["t5/lm_head/b"],
        "trainable_total": sum(n for name, n in numbers.items() if param_label(tuple(name.split("/"))) == "trainable"),
    }
    # The Q-Former's unused word prediction head has no Flax parameters.
    head = recorded.get("Qformer.cls", 0)
    ours |= {"total": sum(numbers.values()) + head, "Qformer_total(tied once)": ours["Qformer.bert"] + head}
    for name, expected in recorded.items():
        if name == "Qformer.cls":
            group.add_note(
                f"the Q-Former's word prediction head ({expected:,}) is left out here and added for the two totals"
            )
        elif name in ours:
            with group.case(name) as case:
                case.same(ours[name], expected)
        else:
            group.add_note(f"not compared: {name}")
