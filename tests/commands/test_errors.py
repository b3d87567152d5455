"""Errors of the user: "calce NAME: ..." and exit code 2 for the command line, "Error: ..." and 1 for the rest."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import pytest
from absl import flags

from calce_jax.commands.cli import main
from calce_jax.commands.runner import exit_codes, run_main
from calce_jax.config import to_dict
from calce_jax.errors import UserError
from calce_jax.presets.runs import get_preset
from calce_jax.storage.extras import install_command
from tests.helpers.commands import run_script

FEW_FIELDS = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"
CONFIG = "--config=configs/calce.py:shapes,stage=1"
REQUIRED = {
    "train": ["--workdir={out}/run"],
    "infer": ["--workdir={out}", "--split=val", "--out={out}/x.jsonl"],
    "prepare": ["--dataset=shapes", "--videos={out}", "--annotations={rows}", "--out={out}/out"],
    "search": ["--query=A cat.", "--out={out}/out"],
    "merge": ["--predictions={rows}", "--annotations={rows}", "--out={out}/out"],
    "evaluate": ["--predictions={rows}", "--annotations={rows}", "--out={out}/out"],
    "convert": ["--source=base:{out}/a", "--target=base:{out}/b"],
    "caption": ["--videos={rows}", "--model=tiny", "--out={out}/out"],
    "cache_features": ["--out={out}/out"],
    "fetch": ["--what=bert", "--out={out}/out"],
}


@pytest.fixture
def run(tmp_path):
    """A function that runs a command with its required flags, which later arguments replace."""
    rows = tmp_path / "val.jsonl"
    rows.write_text('{"qid": 1, "query": "A cat.", "vid": "a", "duration": 3, "relevant_windows": [[0, 1]]}\n')

    def run(command, arguments, message):
        arguments = [argument.format(out=tmp_path, rows=rows) for argument in [*REQUIRED[command], *arguments]]
        with pytest.raises(SystemExit) as error:
            run_script(command, *arguments)
        assert list(tmp_path.iterdir()) == [rows]
        return error.value.code, message.format(out=tmp_path, rows=rows)

    return run


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", [CONFIG.replace("1", "3")], "--config=shapes,stage=3: stage must be one of 1, 2, got '3'"),
        ("train", ["--config=shape"], "--config=shape: the dataset must be one of qvhighlights, charades_sta"),
        ("train", ["--config=configs/calc.py:shapes"], "--config: there is no file configs/calc.py; give a preset"),
        ("train", [CONFIG, "--config.data.frame=8"], "--config.data.frame: no such field; did you mean --config.data"),
        ("train", [CONFIG, "--config.seed=many"], "--config.seed=many: must be a whole number; see"),
        ("train", [CONFIG, "--config.schedule.peak=big"], "--config.schedule.peak=big: must be a number; see"),
        ("train", ["--config", "shape"], "--config=shape: the dataset must be one of qvhighlights, charades_sta"),
        ("train", [CONFIG, "--config.data.augment=maybe"], "--config.data.augment=maybe: must be true or false; see"),
        ("train", [CONFIG, "--config.data=3"], "--config.data=3: --config.data is a group of fields; set one of --con"),
        (
            "search",
            ["{rows}", "--clips=maybe"],
            "Invalid value for '--clips': must be true or false, got 'maybe'\nUsage: calce search",
        ),
        ("train", [], "--config is missing; see `calce train --help`"),
        ("train", [CONFIG, "seed=7"], "unknown argument: seed=7; set fields of the config with --config.FIELD=VALUE"),
        (
            "train",
            [CONFIG, "--config.data.frames=1", "--config.schedule.epochs=0"],
            "2 fields are wrong:\n  config.data.frames: must be an int",
        ),
        ("train", [CONFIG, "--config.mesh=foo"], "1 field is wrong:\n  config.mesh: must be one of"),
        ("cache_features", [CONFIG, "--config.data.batch=0"], "1 field is wrong:\n  config.data.batch: must be an int"),
        ("infer", ["--mesh=foo"], "flag --mesh=foo: value should be one of"),
        ("infer", ["--host=-1"], "--host=-1: must be a non-negative integer"),
        ("infer", ["--split=dev"], "flag --split=dev: value should be one of <train|val|test>"),
        ("prepare", ["--out="], "--out is missing; see `calce prepare --help`"),
        ("search", [], "no video; give files, or folders of videos"),
        (
            "search",
            ["a.mp4", "--querry=a"],
            "No such option '--querry'. Did you mean '--query'?\nUsage: calce search",
        ),
        ("search", ["a.mp4", "--out"], "Option '--out' requires an argument.\nUsage: calce search"),
        ("search", ["a.mp4", "--top=few"], "Invalid value for '--top': 'few' is not a valid integer range.\nUsage"),
        ("search", ["a.mp4", "--clips", "false"], "--clips false: write --clips or --noclips, or --clips=false"),
        (
            "evaluate",
            ["more.jsonl"],
            "Got unexpected extra argument (more.jsonl)\nUsage: calce evaluate [OPTIONS]\nExample: calce eval",
        ),
        ("merge", ["--prediction=x"], "Unknown command line flag 'prediction'. Did you mean: predictions ?"),
        ("convert", ["--dtype=int4"], "flag --dtype=int4: value should be one of"),
        ("convert", ["--run=qvhighlight"], "--run=qvhighlight,size=full: the dataset must be one of"),
        ("prepare", ["--annotations={out}/rows"], "--annotations: the name of {out}/row"),
        ("prepare", ["--annotations=foo={rows}"], "--annotations=foo={rows}: foo is no split; write train=FILE"),
        ("prepare", ["--frames=0"], "--frames=0: must be from 1 to 10000; choose another number"),
        ("prepare", ["--workers=0"], "--workers=0: must be a positive integer"),
        ("search", ["{rows}", "--query= "], "query 2 is empty; describe in a sentence what to look for"),
        (
            "search",
            ["{rows}", "--piece_seconds=0"],
            "Invalid value for '--piece_seconds': 0.0 is not in the range x>=1.\nUsage: calce search",
        ),
        ("caption", ["--model=huge"], "huge: no such folder, and no size of Whisper; give a folder"),
        ("search", ["{rows}", "--whisper=huge"], "huge: no such folder, and no size of Whisper; give a folder"),
        ("prepare", ["--whisper=huge"], "huge: no such folder, and no size of Whisper; give a folder"),
        ("convert", ["--source=nothing:x"], "--source: must be one of the following, got 'nothing:x'"),
        ("fetch", ["--what=nothing"], "Invalid value for '--what': 'nothing' is not one of 'blip2', "),
    ],
)
def test_a_wrong_command_line_exits_with_2(run, capsys, command, arguments, message):
    code, message = run(command, arguments, message)
    printed = capsys.readouterr().err
    assert (code, printed[: len(f"calce {command}: {message}")]) == (2, f"calce {command}: {message}")


@pytest.mark.parametrize("command", ["evaluate", "merge"])
def test_all_missing_flags_are_named_in_one_line(capsys, command):
    with pytest.raises(SystemExit):
        run_script(command)
    line = capsys.readouterr().err.splitlines()[0].partition("; see ")[0]
    assert line == f"calce {command}: --predictions, --annotations and --out are missing"


@pytest.mark.parametrize(("command", "message"), [("cut", "expected a video, a start and an end"), ("merge", "--pred")])
def test_an_error_begins_with_the_name_of_the_command(capsys, command, message):
    with pytest.raises(SystemExit, match=r"^2$"):
        main([command])
    assert capsys.readouterr().err.startswith(f"calce {command}: {message}")


def test_a_wrong_option_shows_the_usage_and_an_example(capsys):
    with pytest.raises(SystemExit):
        run_script("cut", "--hanldes=2")
    assert capsys.readouterr().err.splitlines() == [
        "calce cut: No such option '--hanldes'. Did you mean '--handles'?",
        "Usage: calce cut [OPTIONS] VIDEO START END",
        "Example: calce cut holiday.mp4 1:06 1:17 --copy",
        "Help: calce cut --help",
    ]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", [CONFIG, "--config.data.directory=/nowhere"], "there are no tables in /nowhere: /nowh"),
        ("infer", [], "{out}/config.json: no such file; give the"),
        ("search", ["{rows}"], "none of {rows} can be searched; see"),
        ("search", ["{rows}", "--annotations=/no.jsonl"], "/no.jsonl: no such file"),
        ("prepare", ["--videos=/nowhere"], "--videos=/nowhere: no such folder; correct the flag"),
        ("caption", ["--videos=/nowhere"], "--videos=/nowhere: no such file or folder; correct the flag"),
        ("caption", ["--model=/nope"], "/nope: no such folder; give the folder of a Whisper model"),
        ("prepare", ["--annotations=val=/no.jsonl"], "/no.jsonl: no such file"),
        ("convert", ["--source=base:{out}", "--size=tiny"], "{out} holds none of model.safetensors"),
        ("convert", ["--source=base:{out}/a", "--size=tiny"], "{out}/a: no such file; get it, or give the path where"),
        ("merge", [], "{rows}, line 1"),
        ("evaluate", ["--predictions={out}/no"], "{out}/no: no such file of predictions"),
    ],
)
def test_other_errors_exit_with_1(run, command, arguments, message):
    code, message = run(command, arguments, message)
    assert str(code)[: len(f"Error: {message}")] == f"Error: {message}"


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is not None, reason="Apache Beam is installed here")
@pytest.mark.parametrize("command", ["prepare", "caption"])
def test_a_runner_without_apache_beam_names_its_extra(run, command):
    missing = f"Apache Beam is not installed; {install_command('beam')} in an environment of its own"
    code, _ = run(command, ["--runner=DirectRunner"], "")
    assert str(code).startswith(f"Error: --runner=DirectRunner: {missing}")
    with pytest.raises(ModuleNotFoundError, match=re.escape(missing)) as error:
        importlib.import_module("calce_jax.datasets.beam")
    assert error.value.name == "apache_beam"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "interrupted; run the same command again, it continues where it can"),
        (signal.SIGTERM, 143, "terminated; run the same command again, it continues where it can"),
    ],
)
@pytest.mark.usefixtures("signals_heard")
def test_a_signal_ends_a_command_in_one_line_and_cleans_up(number, code, line, capsys):
    cleaned = []

    def main(argv):
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as error:
        run_main(main, ["calce test"], flags.FlagValues())
    assert (error.value.code, capsys.readouterr().err.strip(), cleaned) == (code, line, [True])
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("number", "code", "command", "patch"),
    [
        (signal.SIGINT, 130, "evaluate", "evaluate.command.callback"),
        (signal.SIGTERM, 143, "evaluate", "evaluate.command.callback"),
        (signal.SIGTERM, 143, "merge", "merge.main"),
    ],
)
def test_a_signal_ends_the_process_while_a_thread_works(number, code, command, patch):
    """Taking the interpreter down under a thread of native code would crash; a thread that sleeps shows the way out."""
    script = f"""
        import os, signal, threading, time
        from calce_jax.commands import cli, {command}
        signal.signal(signal.SIGINT, signal.default_int_handler)
        def main(*argv, **options):
            threading.Thread(target=time.sleep, args=(600,)).start()
            os.kill(os.getpid(), {int(number)})
            time.sleep(600)
        {patch} = main
        cli.main(["{command}", "--predictions=x", "--annotations=x", "--out=x"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1


def test_home_is_expanded_where_a_shell_leaves_it_and_not_in_texts(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = flags.FlagValues()
    flags.DEFINE_string("out", None, "", flag_values=values)
    flags.DEFINE_string("query", None, "", flag_values=values)
    flags.DEFINE_list("annotations", None, "", flag_values=values)
    flags.DEFINE_bool("clips", False, "", flag_values=values)
    given = ["calce", "--out=~/x", "--query=a=~/b", "--annotations=train=~/a,val=~/b", "--clips", "no.mp4", "--", "~x"]
    got = []
    run_main(got.extend, given, values)
    assert (values.out, values.query, values.annotations) == (
        f"{tmp_path}/x",
        "a=~/b",
        [f"train={tmp_path}/a", f"val={tmp_path}/b"],
    )
    assert (values.clips, got) == (True, ["calce", "no.mp4", "~x"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "{file}, line 1: invalid syntax; correct the file"),
        ("x = 1\n\nx = y\n", "{file}, line 3: NameError: name 'y' is not defined; correct the file"),
        ("", "{file} has no get_config; define get_config(preset), see configs/calce.py"),
        ("get_config = 3\n", "{file} has no get_config; define get_config(preset), see configs/calce.py"),
        (
            "def get_config(name):\n    return 3\n",
            "{file}: get_config returns 3, which is no ConfigDict; return a ConfigDict, see configs/calce.py",
        ),
        (
            "def get_config(name):\n    config = {{}}\n    return config['a']\n",
            "{file}, line 3: KeyError: 'a'; correct the file",
        ),
        (
            "def get_config(name):\n    raise ValueError('two\\nlines')\n",
            "{file}, line 2: ValueError: two lines; correct the file",
        ),
        ("import nowhere_at_all\n", "{file}, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'; correct"),
    ],
)
def test_a_broken_config_file_is_told_in_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "cfg.py"
    file.write_text(text.format())
    with pytest.raises(SystemExit) as error:
        run_script("train", f"--config={file}:shapes", f"--workdir={tmp_path}/run")
    (line,) = capsys.readouterr().err.splitlines()
    assert error.value.code == 2
    assert line.startswith(f"calce train: {message.format(file=file)}"), line


def test_a_config_file_without_an_argument_and_an_empty_or_wrong_config(tmp_path, capsys):
    (tmp_path / "cfg.py").write_text("def get_config():\n    return 3\n")
    (tmp_path / "few.py").write_text(FEW_FIELDS)
    for value, message in (
        (f"{tmp_path}/few.py", "--config: "),
        (f"{tmp_path}/cfg.py", f"{tmp_path}/cfg.py: get_config returns 3, which is no ConfigDict"),
        ("", "--config is empty; give a preset such as qvhighlights,stage=1"),
        (tmp_path, f"--config={tmp_path} is a folder; give a preset"),
    ):
        with pytest.raises(SystemExit) as error:
            run_script("train", f"--config={value}", "--config.data.frames=8", f"--workdir={tmp_path}/run")
        (line,) = capsys.readouterr().err.splitlines()
        assert error.value.code == 2
        assert line.startswith(f"calce train: {message}"), line


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [
        ("train", ["--config=qvh,stage=1"], "--config=qvh,stage=1 is deprecated; use --config=qvhighlights,stage=1"),
        (
            "train",
            ["--config=configs/calce.py:charades"],
            "--config=configs/calce.py:charades is deprecated; use --config=configs/calce.py:charades_sta",
        ),
        (
            "train",
            [CONFIG, "--config.keyframes.bias1=0"],
            "--config.keyframes.bias1 is deprecated; use --config.keyframes.dilation",
        ),
        ("prepare", ["--dataset=qvh", "--videos=/nowhere"], "--dataset=qvh is deprecated; use --dataset=qvhighlights"),
        ("convert", ["--run=charades,stage=2"], "--run=charades,stage=2 is deprecated; use --run=charades_sta,stage=2"),
    ],
)
def test_an_old_name_is_accepted_and_the_new_one_is_told(run, capsys, command, arguments, line):
    code, _ = run(command, [*arguments, *(["--config.data.directory=/nowhere"] if command == "train" else [])], "")
    assert code != 2
    assert capsys.readouterr().err.splitlines()[0] == line


@pytest.mark.parametrize(
    ("program", "error", "remedy"),
    [
        ("calce train", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes\nat"), "lower config.data.batch, "),
        ("launch/infer.py", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes"), "lower --batch and --group"),
        ("calce search", MemoryError("9 bytes"), "lower --batch"),
        ("calce merge", MemoryError("9 bytes"), "close other programs"),
    ],
)
def test_a_program_that_exhausts_memory_says_what_to_lower(program, error, remedy):
    message = rf"^Error: the device has too little memory \(.*9 bytes\); {remedy}"
    with pytest.raises(SystemExit, match=message), exit_codes(program):
        raise error


def test_other_errors_of_jax_keep_their_traceback():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), exit_codes("calce train"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")


def test_the_memory_of_infer_can_be_limited(monkeypatch, tmp_path):
    given = {}

    def load(workdir, **options):
        given.update(options)
        raise UserError("loaded", "stop here")

    monkeypatch.setattr("calce_jax.inference.trained_run.load_trained_model", load)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(get_preset("shapes,stage=1"))))
    with pytest.raises(SystemExit, match="loaded"):
        main(["infer", f"--workdir={tmp_path}", "--split=val", f"--out={tmp_path}/x.jsonl", "--batch=1", "--group=2"])
    assert (given["batch"], given["group"]) == (1, 2)
