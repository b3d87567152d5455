"""How options are spelt: as flags of absl were, with dashes, after arguments; sentences that begin with "-"."""

import click
import pytest

from calce_jax.commands.cli import invoke, load_command
from calce_jax.commands.flags.search import Options
from tests.helpers.commands import run_script, unchanged_process

HOME = "/folder of someone"
COMMANDS_FOR_PEOPLE = ("search", "index", "ls", "cut", "caption", "web", "fetch", "evaluate", "config", "completion")


@pytest.fixture
def parse(monkeypatch):
    """A function that parses a command line and returns the values that the command gets."""
    monkeypatch.setenv("HOME", HOME)

    def parse(name, *arguments):
        command, got = load_command(name), {}
        monkeypatch.setattr(command, "callback", lambda **values: got.update(values))
        with unchanged_process():
            invoke(command, list(arguments), f"calce {name}")
        return got

    return parse


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--min_score=0.5"], "min_score", 0.5),
        (["--min_score", "0.5"], "min_score", 0.5),
        (["--min-score=0.5"], "min_score", 0.5),
        (["--min-score", "0.5"], "min_score", 0.5),
        (["-min_score=0.5"], "min_score", 0.5),
        (["--min_score=0.1", "--min_score=0.5"], "min_score", 0.5),
        (["--clips"], "clips", True),
        (["-clips"], "clips", True),
        (["--noclips"], "clips", False),
        (["--clips", "--noclips"], "clips", False),
        (["--clips=true"], "clips", True),
        (["--clips=1"], "clips", True),
        (["--clips", "--clips=False"], "clips", False),
        (["--query=a", "--query", "b"], "query", ("a", "b")),
        (["--query", "--clips=false"], "query", ("--clips=false",)),
        (["--query=a=~/b"], "query", ("a=~/b",)),
        (["--export=csv, edl"], "export", ("csv", "edl")),
        (["--export=csv", "--export=edl"], "export", ("edl",)),
        (["--export="], "export", ()),
        (["--out="], "out", ""),
        (["--out=~/x"], "out", "{home}/x"),
        (["--library-file=~/x"], "library_file", "{home}/x"),
        (["--verbosity=1"], "arguments", ()),
        (["a.mp4", "--top=2", "a dog"], "arguments", ("a.mp4", "a dog")),
        (["--top=2", "--", "--clips", "-x", "min-score"], "arguments", ("--clips", "-x", "min-score")),
        (["a - b", "-"], "arguments", ("a - b", "-")),
    ],
)
def test_spellings(parse, arguments, name, value):
    wanted = value.format(home=HOME) if isinstance(value, str) else value
    assert parse("search", *arguments)[name] == wanted


def test_defaults_of_a_search(parse):
    values = parse("search")
    assert Options(**{name: value for name, value in values.items() if name != "arguments"}) == Options(
        query=(),
        out=None,
        checkpoint=None,
        yes=False,
        models_dir=None,
        batch=None,
        keep_downloads=False,
        library=False,
        library_file=None,
        candidates=100,
        mode="picture",
        srt="auto",
        language=None,
        whisper=None,
        hotwords=None,
        top=5,
        min_score=None,
        annotations=None,
        clips=False,
        export=(),
        handles=0.0,
        seconds=False,
        json=False,
        quiet=False,
        play=False,
        piece_seconds=None,
        cache=None,
        cache_gb=10.0,
        verify="on",
    )


@pytest.mark.parametrize(
    ("arguments", "values", "told"),
    [
        ([], (False, True), ""),
        (["--condition_on_previous_text", "--novad_filter"], (True, False), ""),
        (["--condition-on-previous-text=true", "--vad-filter=false"], (True, False), ""),
        (["--quote"], (True, True), "--quote is deprecated; use --condition_on_previous_text\n"),
        (["--only_voices=false"], (False, False), "--only_voices is deprecated; use --vad_filter\n"),
        (
            ["--quote", "--nocondition_on_previous_text"],
            (False, True),
            "--quote is deprecated; use --condition_on_previous_text\n",
        ),
        (["--noonly_voices"], (False, False), "--only_voices is deprecated; use --vad_filter\n"),
    ],
)
def test_old_names_of_switches(parse, capsys, arguments, values, told):
    got = parse("caption", "--videos=x", "--out=y", "--model=tiny", *arguments, "--", "--temp_location=x")
    assert (got["condition_on_previous_text"], got["vad_filter"]) == values
    assert got["beam_flags"] == ("--temp_location=x",)
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("search", ["--top=0"], "Invalid value for '--top': 0 is not in the range x>=1."),
        ("search", ["--min_score=-1"], "Invalid value for '--min_score': -1.0 is not in the range 0<=x<=1."),
        ("search", ["--handles=-1"], "Invalid value for '--handles': -1.0 is not in the range x>=0."),
        ("search", ["--cache_gb=-1"], "Invalid value for '--cache_gb': -1.0 is not in the range x>=0."),
        (
            "search",
            ["--mode=pictures"],
            "Invalid value for '--mode': 'pictures' is not one of 'picture', 'speech', 'both'.",
        ),
        ("search", ["--verify=maybe"], "Invalid value for '--verify': 'maybe' is not one of 'on', 'off'."),
        ("search", ["--noclips=true"], "Option '--noclips' does not take a value."),
        ("search", ["film.mp4", "-a dog"], "a sentence that begins with - goes after -- and all options"),
        ("caption", ["--batch_size=0"], "Invalid value for '--batch_size': 0 is not in the range x>=1."),
        ("web", ["--port=70000"], "Invalid value for '--port': 70000 is not in the range 1<=x<=65535."),
        ("web", ["--visitor_uploads=0"], "Invalid value for '--visitor_uploads': 0 is not in the range x>=1."),
        ("web", ["--max-mb=-1"], "Invalid value for '--max_mb': -1.0 is not in the range x>=0."),
        ("evaluate", ["--rank=best"], "Invalid value for '--rank': 'best' is not one of 'given', 'longest', 'score'."),
        ("completion", ["tcsh"], "Invalid value for '{bash|zsh|fish}': 'tcsh' is not one of 'bash', 'zsh', 'fish'."),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(capsys, command, arguments, message):
    with pytest.raises(SystemExit) as error:
        run_script(command, *arguments)
    assert error.value.code == 2
    first, usage, example, hint = capsys.readouterr().err.splitlines()
    assert first == f"calce {command}: {message}"
    assert usage.startswith(f"Usage: calce {command} [OPTIONS]")
    assert example.startswith("Example: ")
    assert hint == f"Help: calce {command} --help"


@pytest.mark.parametrize("command", COMMANDS_FOR_PEOPLE)
@pytest.mark.parametrize("flag", ["-h", "--help", "--helpfull", "--helpshort"])
def test_help_has_many_names(capsys, command, flag):
    run_script(command, flag)
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: calce {command} ")
    assert "--verbosity" in text


def test_every_option_has_a_help_text_and_an_underscored_name():
    for name in COMMANDS_FOR_PEOPLE:
        for option in load_command(name).params:
            if isinstance(option, click.Option) and not option.hidden:
                assert option.help, (name, option.name)
                assert "-" not in option.opts[0].removeprefix("--"), (name, option.name)
