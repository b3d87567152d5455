"""Upgrade of configs that earlier versions wrote: renamed fields and renamed values."""

from collections.abc import Mapping
from typing import Any

# Full name of a field before -> now.
RENAMED_FIELDS = {
    "keyframes.bias1": "keyframes.dilation",
    "keyframes.bias2": "keyframes.filter_dilation",
    "text.words": "text.bert_tokens",
    "generation.rank": "generation.window_order",
}
# Full name of a field now -> its values before -> now.
RENAMED_VALUES: dict[str, dict[str, str]] = {
    "data.dataset": {"qvh": "qvhighlights", "charades": "charades_sta"},
    "weights.base": {"data/shapes/base.safetensors": "calce_jax/assets/tiny/base.safetensors"},
    "text.t5_tokenizer": {"data/tokenizers/tiny_t5": "calce_jax/assets/tiny/t5"},
    "text.bert_tokenizer": {"data/tokenizers/tiny_bert": "calce_jax/assets/tiny/bert"},
}
# Fields newer than the first release that presets of today set to another value than their default.
SET_BY_NEWER_PRESETS = (
    "data.group",
    "data.window_grid",
    "generation.decision",
    "generation.saliency",
    "generation.window_source",
)
# SHA-256 of files of weights before -> now: the same tensors.
SAME_WEIGHTS = {
    # The packaged base weights, before their header had checksums.
    "46546fc59bc21c5ccb8245f8c899efeed9881d395fdf48cb4d044107afcd4115": (
        "12208ee3824af48c53e7590ce9cb3c979aa58a13254e0422c744693c59922176"
    ),
}


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config with today's names and values; unknown fields stay as they are, for `validate` to report.

    Args:
      config: nested mappings, parsed from a config.json or from a checkpoint's record of any version.
    """
    upgraded: dict[str, Any] = {}
    for name, value in config.items():
        if not isinstance(value, Mapping):
            upgraded[name] = value
            continue
        group = upgraded.setdefault(name, {})
        for old_field, field_value in value.items():
            full_name = RENAMED_FIELDS.get(f"{name}.{old_field}", f"{name}.{old_field}")
            renamed = RENAMED_VALUES.get(full_name, {})
            known = isinstance(field_value, str) and field_value in renamed
            group[full_name.partition(".")[2]] = renamed[field_value] if known else field_value
    return upgraded
