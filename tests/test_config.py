import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from calce_jax.config import ConfigError, RewardConfig, RunConfig, diff, read_config, to_dict, validate
from calce_jax.training.workdir_config import init_workdir, resumed_config
from configs.calce import get_config


@pytest.mark.parametrize("dataset", ["qvhighlights", "charades_sta", "activitynet", "shapes"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", ["full", "full_xxl", "small", "tiny"])
def test_every_run_is_valid(dataset, stage, size):
    config = get_config(f"{dataset},stage={stage},size={size}")
    run = validate(config)
    assert (run.stage, run.data.dataset, run.model.size) == (stage, dataset, size)
    assert validate(json.loads(json.dumps(to_dict(run)))) == run


# dataset, stage, frames, epochs, peak, floor, warm-up, accumulate, dilation, filter_dilation
TABLE = [
    ("qvh", 1, 75, 50, 3e-4, 0.0, 2255, 2, 1, 0),
    ("qvh", 2, 150, 15, 2.8e-4, 2.6e-4, 256, 2, 3, 1),
    ("charades", 1, 60, 50, 3e-4, 2e-4, 450, 4, 1, 0),
    ("charades", 2, 120, 15, 2.8e-4, 2.6e-4, 256, 2, 3, 2),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}{row[1]}")
def test_schedules_are_the_papers(row):
    run = validate(get_config(f"{row[0]},stage={row[1]},behaviour=reference"))
    s, k = run.schedule, run.keyframes
    numbers = (
        run.data.frames,
        s.epochs,
        s.peak,
        s.floor,
        s.warmup_steps,
        run.optimizer.accumulate,
        k.dilation,
        k.filter_dilation,
    )
    assert numbers == row[2:]
    assert (s.warmup_from, run.optimizer.weight_decay, run.generation.beams, run.seed) == (1e-8, 0.05, 5, 42)
    assert (run.data.batch, run.mesh, run.behaviour, run.lora.rank, run.lora.alpha) == (
        4,
        "a100x4",
        "reference",
        8,
        8.0,
    )


def changed(**fields):
    config = get_config("shapes,stage=1").to_dict()
    for name, value in fields.items():
        *groups, last = name.split("__")
        group = config
        for key in groups:
            group = group[key]
        if value is None:
            del group[last]
        else:
            group[last] = value
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__framse": 3}, r"config.data.framse: no such field; did you mean 'frames'\? its fields are dataset, "),
        ({"data__frames": None}, "config.data.frames: missing; must be an int >= 2"),
        ({"data__frames": "75"}, "config.data.frames: must be an int >= 2, got '75'"),
        ({"data__frames": True}, "config.data.frames: must be an int >= 2, got True"),
        ({"seed": 10**400}, r"config.seed: must fit in 64 bits, got 10{59}$"),
        ({"seed": 2**63}, "config.seed: must fit in 64 bits, got 9223372036854775808"),
        ({"seed": 2**63 - 1}, r"config.seed: must be an int in \[0, "),
        ({"lora__alpha": -(10**400)}, "config.lora.alpha: must fit in 64 bits, got -10"),
        ({"text__buckets": [10**400]}, r"config.text.buckets: must fit in 64 bits, got \[10"),
        ({"stage": 3}, "config.stage: must be one of 1, 2, got 3"),
        ({"behaviour": "refrence"}, "config.behaviour: must be one of 'default', 'reference', got 'refrence'"),
        ({"lora__dropout": 1.5}, r"config.lora.dropout: must be a float in \[0, 1\], got 1.5"),
        ({"model": 3}, "config.model: must be a group of fields, got 3"),
        ({"mesh": "tpus"}, "config.mesh: must be one of 'single', .*, got 'tpus'"),
        ({"text__buckets": [512, 256]}, r"config.text.buckets: must be ascending lengths >= 1, got \(512, 256\)"),
        ({"text__buckets": [1.5]}, r"config.text.buckets: must be a tuple of ints, got \(1.5,\)"),
        ({"schedule__floor": 1.0}, "config.schedule.floor: must be <= config.schedule.peak=0.003, got 1.0"),
        ({"keyframes__clusters": 21}, "config.keyframes.clusters: must be <= config.data.frames=10, got 21"),
        ({"keyframes__filter_dilation": 1}, "config.keyframes.filter_dilation: must be 0 in stage 1, got 1"),
        ({"data__negatives": 0.6}, r"config.data.negatives: must be a float in \[0, 0.5\], got 0.6"),
        ({"data__inverted": -0.1}, r"config.data.inverted: must be a float in \[0, 0.5\], got -0.1"),
        ({"data__mix": 1.5}, r"config.data.mix: must be a float in \[0, 1\], got 1.5"),
        (
            {"data__mix": 0.5, "behaviour": "reference"},
            "config.data.mix: must be 0 with config.behaviour='reference', got",
        ),
        ({"reward__temperature": 0.0}, r"config.reward.temperature: must be a float in \[0.01, 100\], got 0.0"),
        ({"reward__rollout": 3}, r"config.reward.rollout: no such field; did you mean 'rollouts'"),
        (
            {"objective": "reward", "behaviour": "reference"},
            "config.objective: must be 'likelihood' with config.behaviour='reference', .*, got 'reward'",
        ),
        ({"stage": 2, "keyframes__mode": "none"}, "config.keyframes.mode: must be 'cluster' in stage 2, got 'none'"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(fields, message):
    with pytest.raises(ConfigError, match=message):
        validate(changed(**fields))


def test_a_config_without_the_newer_groups_is_read_and_differs_in_them_from_one_that_uses_them():
    config = changed(objective=None, reward=None, loop__patience=None)
    run = validate(config)
    assert (run.objective, run.reward, run.loop.patience) == ("likelihood", RewardConfig(), 0)
    assert validate(config | {"reward": {"rollouts": 4}}).reward == RewardConfig(rollouts=4)
    assert diff(config, to_dict(run)) == []
    other = dataclasses.replace(run, objective="reward", reward=RewardConfig(kl=0.5))
    assert diff(config, to_dict(other)) == [
        "objective: 'likelihood' there, 'reward' here",
        "reward.kl: 0.0 there, 0.5 here",
    ]


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(ConfigError, match="2 fields are wrong") as raised:
        validate(changed(stage=7, data__batch=0))
    assert "config.stage" in str(raised.value)
    assert "config.data.batch: must be an int >= 1, got 0" in str(raised.value)


def test_an_integer_serves_as_a_float():
    assert validate(changed(lora__alpha=16)).lora.alpha == 16.0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("qvhh,stage=1", "the dataset must be one of qvhighlights, charades_sta, activitynet, shapes, got 'qvhh'"),
        ("qvh,stge=1", "'stge=1' must set one of stage, size, behaviour, method"),
        ("qvh,stage=3", "stage must be one of 1, 2, got '3'"),
    ],
)
def test_a_wrong_argument_lists_the_right_ones(argument, message):
    with pytest.raises(ConfigError, match=message):
        get_config(argument)


def test_the_config_locks_its_fields():
    config = get_config("shapes")
    assert isinstance(config, ConfigDict)
    with pytest.raises(AttributeError, match="Did you mean"):
        config.data.framse = 3
    with pytest.raises(TypeError):
        config.data.frames = "many"


def test_a_run_with_changed_rows_is_another_run():
    """As with augmentation; a config of before there were such fields has none."""
    plain = validate(get_config("shapes,stage=1"))
    changed = dataclasses.replace(plain, data=dataclasses.replace(plain.data, negatives=0.2, mix=0.1))
    before = to_dict(plain)
    for name in ("negatives", "inverted", "mix"):
        del before["data"][name]
    assert diff(before, to_dict(plain)) == []
    assert diff(before, to_dict(changed)) == ["data.mix: 0.0 there, 0.1 here", "data.negatives: 0.0 there, 0.2 here"]


def test_differences_pass_over_what_is_harmless():
    one = validate(get_config("shapes,stage=1"))
    two = dataclasses.replace(
        one,
        seed=7,
        data=dataclasses.replace(one.data, frames=40, directory="elsewhere"),
        loop=dataclasses.replace(one.loop, log_every=1),
    )
    there = json.loads(json.dumps(to_dict(one)))
    assert diff(there, to_dict(one)) == []
    assert diff(there, to_dict(two)) == ["data.frames: 10 there, 40 here", "seed: 42 there, 7 here"]
    assert isinstance(two, RunConfig)


# What a config.json of an earlier version has in place of today's names.
OLD_FIELDS = {
    "data": {"dataset": "qvh", "directory": "runs/prepared"},
    "keyframes": {"mode": "cluster", "clusters": 4, "bias1": 2, "bias2": 1},
    "text": {"words": 24, "t5_tokenizer": "data/tokenizers/tiny_t5", "bert_tokenizer": "data/tokenizers/tiny_bert"},
    "generation": {"beams": 5, "rank": "score"},
    "weights": {"base": "data/shapes/base.safetensors", "start": "runs/stage1"},
}


def old_config():
    """Return the plain values of a stage-2 config under the names of earlier versions."""
    config = json.loads(json.dumps(get_config("shapes,stage=2").to_dict()))
    for group, field in (("keyframes", "dilation"), ("keyframes", "filter_dilation")):
        del config[group][field]
    del config["text"]["bert_tokens"], config["generation"]["window_order"]
    return config | {group: config[group] | fields for group, fields in OLD_FIELDS.items()}


def test_a_config_with_the_names_of_earlier_versions_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_config()))
    config = read_config(tmp_path)
    assert (config.keyframes.dilation, config.keyframes.filter_dilation) == (2, 1)
    assert (config.text.bert_tokens, config.generation.window_order) == (24, "score")
    assert config.data.dataset == "qvhighlights"
    assert config.weights.base == "calce_jax/assets/tiny/base.safetensors"
    assert config.text.t5_tokenizer == "calce_jax/assets/tiny/t5"
    assert config.text.bert_tokenizer == "calce_jax/assets/tiny/bert"
    # Paths of the user's own stay.
    assert (config.data.directory, config.weights.start) == ("runs/prepared", "runs/stage1")


def test_a_workdir_of_an_earlier_version_is_resumed_with_the_same_values_alone(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_config()))
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    config = read_config(tmp_path)
    other = dataclasses.replace(config, keyframes=dataclasses.replace(config.keyframes, dilation=5))
    with pytest.raises(ConfigError, match=r"another config.*\n  keyframes.dilation: 2 there, 5 here$"):
        init_workdir(tmp_path, other)
    assert json.loads((tmp_path / "config.json").read_text()) == old_config()
    init_workdir(tmp_path, config)
    assert json.loads((tmp_path / "config.json").read_text())["keyframes"]["dilation"] == 2
    assert read_config(tmp_path) == config
    with pytest.raises(ConfigError, match=r"keyframes.dilation: 2 there, 5 here"):
        init_workdir(tmp_path, other)


def test_a_workdir_of_an_earlier_version_keeps_the_values_of_newer_fields(tmp_path, capsys):
    saved = old_config()
    for field in ("decision", "saliency", "window_source"):
        del saved["generation"][field]
    del saved["data"]["window_grid"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    then = read_config(tmp_path)
    today = dataclasses.replace(
        then,
        data=dataclasses.replace(then.data, window_grid=2),
        generation=dataclasses.replace(
            then.generation, decision="minimum_bayes_risk", saliency=True, window_source="all_beams"
        ),
    )
    assert resumed_config(today, tmp_path) == today  # nothing was trained there
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    assert resumed_config(today, tmp_path) == then
    kept = (
        "data.window_grid=1, generation.decision=most_probable, generation.saliency=False, "
        "generation.window_source=best_beam"
    )
    assert capsys.readouterr().err == f"{tmp_path} is of an earlier version and keeps {kept}\n"
    # Every start after the first keeps them too.
    init_workdir(tmp_path, then)
    assert resumed_config(today, tmp_path) == read_config(tmp_path) == then
    assert kept in capsys.readouterr().err
    # What a preset does not set was asked for.
    asked = dataclasses.replace(today, data=dataclasses.replace(today.data, negatives=0.1))
    with pytest.raises(ConfigError, match=r"another config.*\n  data.negatives: 0.0 there, 0.1 here$"):
        init_workdir(tmp_path, resumed_config(asked, tmp_path))


def test_checkpoints_without_a_config_take_no_config(tmp_path):
    config = validate(get_config("shapes,stage=1").to_dict())
    (tmp_path / "checkpoints/100").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"checkpoints and no config.json.*restore it from .* or choose another"):
        init_workdir(tmp_path, config)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize("damaged", [None, [], {"epochs": None}, {"epochs": "20"}, {"epochs": -1}, {"epochs": True}])
def test_a_schedule_that_is_damaged_is_another_config(tmp_path, damaged):
    config = validate(get_config("shapes,stage=1").to_dict())
    saved = json.loads(json.dumps(get_config("shapes,stage=1").to_dict()))
    (tmp_path / "config.json").write_text(json.dumps(saved | {"schedule": damaged}))
    (tmp_path / "checkpoints/100").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another config"):
        init_workdir(tmp_path, config, steps_per_epoch=10)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.json: no such file; give the workdir of a run"),
        ("{", r"config.json: not JSON .*; restore it from"),
        ("[" * 100_000, r"config.json: not JSON .*; restore it from"),
        ("9" * 5000, r"config.json: not JSON .*; restore it from"),
        ("[]", r"config.json: must be a JSON object, got list; restore it from"),
        ('{"stage": 1}', r"config.json: \d+ fields are wrong:(?s:.*)config.data: missing; (?s:.*); restore it from"),
    ],
)
def test_a_damaged_config_of_a_workdir_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)
