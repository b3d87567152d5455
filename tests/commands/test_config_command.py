"""`calce config`: every field with its value, its meaning and what is allowed."""

import json

import pytest

from calce_jax.config import describe, flatten, to_dict
from calce_jax.presets.runs import get_preset
from tests.helpers.commands import run_script


def test_every_field_has_a_value_a_meaning_and_a_range(capsys):
    run_script("config", "qvhighlights,stage=2", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert {name: row["value"] for name, row in rows.items()} == dict(
        flatten(to_dict(get_preset("qvhighlights,stage=2")))
    )
    for name, row in rows.items():
        assert row["name"] == name
        assert len(row["meaning"]) > 5, name
        assert row["allowed"].split()[0] in ("a", "an", "one"), name
    assert rows["data.frames"] == {
        "name": "data.frames",
        "value": 150,
        "meaning": "key frames of a video",
        "allowed": "an int >= 2",
    }
    assert rows["mesh"]["allowed"].startswith("one of 'single', ")


def test_the_text_is_grouped_and_has_the_flags_of_train(capsys):
    run_script("config", "shapes", "--config.seed=7", "--config.data.frames=12", "--config.text.buckets=(64,96)")
    printed = capsys.readouterr().out
    blocks = printed.strip().split("\n\n")
    groups = describe(get_preset("shapes"))
    assert [block.splitlines()[0] for block in blocks[1:]] == [f"{g.name}: {g.meaning}" for g in groups[1:]]
    assert "  --config.seed=7\n" in blocks[0]
    assert "  --config.data.frames=12\n      key frames of a video; an int >= 2\n" in blocks[1]
    assert "  --config.text.buckets='(64, 96)'\n" in printed


def test_printed_flags_are_read_by_the_command(capsys):
    run_script("config", "shapes,stage=2", "--json")
    wanted = capsys.readouterr().out
    fields = [field for group in describe(get_preset("shapes,stage=2")) for field in group.fields]
    flags = [f"--config.{field.name}={field.value}" for field in fields]
    run_script("config", "shapes,stage=1", "--json", *flags)
    assert capsys.readouterr().out == wanted


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qvhighlights,stage=3"], "--config=qvhighlights,stage=3: stage must be one of 1, 2, got '3'"),
        (["nothing.py"], "--config: there is no file nothing.py; give a preset"),
        (["shapes", "--config.data.frame=8"], "--config.data.frame: no such field; did you mean --config.data.frames?"),
        (["shapes", "--config.data.frames=1"], "1 field is wrong:\n  config.data.frames: must be an int >= 2, got 1"),
        (["shapes", "--config.seed=many"], "--config.seed=many: must be a whole number"),
        (["shapes", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (["shapes", "seed=3"], "unknown argument: seed=3; set fields with --config.FIELD=VALUE"),
        ([], "Missing argument 'PRESET'."),
    ],
)
def test_a_wrong_config(capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run_script("config", *arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith(f"calce config: {message}")
