"""Presets hold the settings of the published runs: CALCE's configs of both stages, as far as they are known."""

import dataclasses
from dataclasses import asdict, replace

import numpy as np
import pytest

from calce_jax.config import RunConfig, flatten, packaged_path, to_dict, validate
from calce_jax.config_compat import SET_BY_NEWER_PRESETS
from calce_jax.inference.prediction import step_config
from calce_jax.models.selection import SelectionConfig
from calce_jax.presets.runs import DATASETS, get_preset
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import RowFlag, TextSizes
from calce_jax.text.tokenizers import load_bert, load_t5

# frames, captions of a batch, epochs, peak and floor of the rate, warm-up steps, accumulated micro-steps, dilations.
PUBLISHED = {
    "qvhighlights,stage=1": (75, 64, 50, 3e-4, 0.0, 2255, 2, (1, 0)),
    "qvhighlights,stage=2": (150, 64, 15, 2.8e-4, 2.6e-4, 256, 2, (3, 1)),
    "charades_sta,stage=1": (60, 1, 50, 3e-4, 2e-4, 450, 4, (1, 0)),
    "charades_sta,stage=2": (120, 1, 15, 2.8e-4, 2.6e-4, 256, 2, (3, 2)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs(name):
    config = get_preset(name)
    frames, captions, epochs, peak, floor, warmup, accumulate, (dilation, filter_dilation) = PUBLISHED[name]
    assert (config.data.frames, config.data.captions, config.data.batch) == (frames, captions, 4)
    assert config.data.augment
    assert config.data.use_captions == name.startswith("qvh")
    schedule = config.schedule
    assert (schedule.epochs, schedule.peak, schedule.floor, schedule.warmup_steps) == (epochs, peak, floor, warmup)
    assert asdict(config.optimizer) == {
        "accumulate": accumulate,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.05,
    }
    assert asdict(config.lora) == {"rank": 8, "alpha": 8.0, "dropout": 0.05}
    assert (config.model.frozen_dtype, config.model.compute_dtype, config.model.remat) == (
        "bfloat16",
        "bfloat16",
        "full",
    )
    assert (config.model.ln_vision, config.generation.beams) == ("trained", 5)
    assert step_config(config, 8).selection == SelectionConfig(
        stage=config.stage,
        mode="cluster",
        clusters=12,
        dilation=dilation,
        filter_dilation=filter_dilation,
        max_captions=5,
        min_similarity=0.9,
        caption_block=captions,
        behaviour="default",
    )


def test_activitynet_has_mr_blips_frames_and_schedule_for_half_the_devices():
    first, second = (get_preset(f"activitynet,stage={stage}") for stage in (1, 2))
    assert (first.data.frames, first.schedule.epochs, first.schedule.peak, first.schedule.floor) == (60, 50, 3e-4, 3e-5)
    assert first.schedule.warmup_steps * first.data.batch == 23_390 * 8
    assert first.optimizer.accumulate * first.data.batch == 4 * 8
    assert (second.data.frames, second.weights.start) == (120, "runs/activitynet_stage1")
    assert (second.data.eval_split, second.data.use_captions) == ("val", False)


@pytest.mark.parametrize("stage", [1, 2])
def test_prompts_of_activitynet_hold_the_times_of_its_longest_videos(shared, stage):
    """Times from 200 s on are several tokens of Flan-T5."""
    config = get_preset(f"activitynet,stage={stage}")
    t5, bert = load_t5(shared / "tokenizers/t5"), load_bert(shared / "tokenizers/bert")
    text = config.text
    sizes = TextSizes(config.data.frames, 1, text.bert_tokens, text.text_tokens, text.answer_tokens, text.max_text)
    writer = PromptWriter(t5, bert, sizes, stage=stage)
    times = np.linspace(0, 1000, config.data.frames)
    row = writer.write("A man runs. " * 8, ["man"], times, 1000, true_windows=[[900, 999]], stage1_windows=[[0, 1000]])
    assert row.row_flags == RowFlag(0)
    assert t5.decode([token for token in row.labels.tolist() if token], skip_special_tokens=True) == "[[900, 999]]"


def test_the_original_reads_windows_in_the_given_order_and_does_not_regroup():
    config = get_preset("qvhighlights,stage=1,behaviour=reference")
    assert (config.generation.window_order, config.data.group, config.behaviour) == ("given", 1, "reference")
    assert (config.generation.window_source, config.generation.decision) == ("best_beam", "most_probable")
    assert not config.generation.saliency


@pytest.mark.parametrize(("dataset", "grid"), [("qvhighlights", 2), ("charades_sta", 1), ("shapes", 1)])
@pytest.mark.parametrize("stage", [1, 2])
def test_predictions_list_the_windows_of_all_beams_on_the_grid_of_the_annotations(dataset, grid, stage):
    config = get_preset(f"{dataset},stage={stage}")
    assert (config.generation.window_source, config.data.window_grid) == ("all_beams", grid)
    # Of these, QVHighlights alone rates clips.
    assert config.generation.saliency is (dataset == "qvhighlights")


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("stage", [1, 2])
def test_the_tiny_size_needs_nothing_but_the_package(dataset, stage):
    config = get_preset(f"{dataset},stage={stage},size=tiny")
    for path in (config.weights.base, config.text.t5_tokenizer, config.text.bert_tokenizer):
        assert path.startswith("calce_jax/assets/tiny/"), path
        assert packaged_path(path).exists()


def test_sizes_with_published_weights_read_them_from_one_place():
    config = get_preset("qvhighlights,stage=1")
    assert config.weights.base == "weights/full.safetensors"
    assert (config.text.t5_tokenizer, config.text.bert_tokenizer) == (
        "weights/tokenizers/t5",
        "weights/tokenizers/bert",
    )
    small = get_preset("charades_sta,stage=1,size=small")
    assert (small.weights.base, small.text.t5_tokenizer) == ("", "weights/tokenizers/t5")


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("stage", [1, 2])
def test_training_by_rewards_goes_on_from_the_run_of_its_stage(dataset, stage):
    before, config = (get_preset(f"{dataset},stage={stage}{option}") for option in ("", ",objective=reward"))
    assert (before.objective, config.objective) == ("likelihood", "reward")
    workdir = f"runs/demo/stage{stage}" if dataset == "shapes" else f"runs/{dataset}_stage{stage}"
    assert config.weights == replace(before.weights, start=workdir)
    if dataset == "shapes":  # as measured by benchmarks/shapes
        assert config.schedule == get_preset("shapes,stage=2").schedule
    else:
        assert config.schedule.peak == pytest.approx(before.schedule.peak / 10)
        assert 1 <= config.schedule.epochs < before.schedule.epochs
    assert (before.loop.patience, config.loop.patience) == (0, 2)
    assert (config.data, config.text, config.optimizer) == (before.data, before.text, before.optimizer)
    assert validate(to_dict(config)) == config


def newer_fields(group=None, prefix=""):
    """Yield the full names and defaults of all fields that have one: those that the first release did not have."""
    for field in dataclasses.fields(group or RunConfig):
        if dataclasses.is_dataclass(field.type):
            yield from newer_fields(field.type, f"{prefix}{field.name}.")
        elif field.default is not dataclasses.MISSING:
            yield f"{prefix}{field.name}", field.default


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_field_that_a_preset_sets_and_earlier_versions_did_not_have_is_listed(dataset):
    """A run of an earlier version keeps what it had; see `calce_jax.training.workdir_config`."""
    defaults = dict(newer_fields())
    assert "generation.decision" in defaults
    for stage in (1, 2):
        values = dict(flatten(to_dict(get_preset(f"{dataset},stage={stage}"))))
        changed = {name for name, default in defaults.items() if values[name] != default}
        changed = {name for name in changed if not name.startswith("lora.")}  # have had a default from the first on
        assert changed <= set(SET_BY_NEWER_PRESETS)
