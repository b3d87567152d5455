import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from calce_jax.config import ConfigError, RunConfig, diff, to_dict, validate
from configs.calce import get_config


@pytest.mark.parametrize("dataset", ["qvh", "charades", "shapes"])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("size", ["full", "full_xxl", "small", "tiny"])
def test_every_run_is_valid(dataset, stage, size):
    config = get_config(f"{dataset},stage={stage},size={size}")
    run = validate(config)
    assert (run.stage, run.data.dataset, run.model.size) == (stage, dataset, size)
    assert validate(json.loads(json.dumps(to_dict(run)))) == run


# dataset, stage, frames, epochs, peak, floor, warm-up, accumulate, bias1, bias2
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
        ({"data__framse": 3}, r"config.data.framse: no such field; did you mean 'frames'\? there are dataset, "),
        ({"data__frames": None}, "config.data.frames: missing; it should be a int at least 2"),
        ({"data__frames": "75"}, "config.data.frames: '75' should be a int at least 2"),
        ({"data__frames": True}, "config.data.frames: True should be a int"),
        ({"stage": 3}, "config.stage: 3 should be one of 1, 2"),
        ({"behaviour": "refrence"}, "config.behaviour: 'refrence' should be one of 'default', 'reference'"),
        ({"lora__dropout": 1.5}, "config.lora.dropout: 1.5 should be a float from 0 to 1"),
        ({"model": 3}, "config.model: 3 should be a group of fields"),
        ({"mesh": "tpus"}, "config.mesh: 'tpus' is none of single, "),
        ({"text__buckets": [512, 256]}, r"config.text.buckets: \(512, 256\) should be one or more rising lengths"),
        ({"text__buckets": [1.5]}, r"config.text.buckets: \(1.5,\) should be a tuple of int"),
        ({"schedule__floor": 1.0}, "config.schedule.floor: 1.0 exceeds"),
        ({"keyframes__clusters": 21}, "config.keyframes.clusters: 21 exceeds the 10 of config.data.frames"),
        ({"keyframes__filter_dilation": 1}, "config.keyframes.filter_dilation: 1 in stage 1"),
        ({"stage": 2, "keyframes__mode": "none"}, "config.keyframes.mode: 'none' in stage 2"),
    ],
)
def test_a_wrong_field_is_named_with_what_would_be_right(fields, message):
    with pytest.raises(ConfigError, match=message):
        validate(changed(**fields))


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(ConfigError, match=r"2 place\(s\)") as raised:
        validate(changed(stage=7, data__batch=0))
    assert "config.stage" in str(raised.value)
    assert "config.data.batch: 0" in str(raised.value)


def test_an_integer_serves_as_a_float():
    assert validate(changed(lora__alpha=16)).lora.alpha == 16.0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("qvhh,stage=1", "the dataset must be one of qvhighlights, charades_sta, shapes, got 'qvhh'"),
        ("qvh,stge=1", "'stge=1' must set one of stage, size, behaviour"),
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
