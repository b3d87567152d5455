"""The `calce` command: `calce NAME ...` runs `calce_jax.commands.NAME`.

This module and the top level of the commands' modules import neither jax nor transformers nor TFDS, so help and usage
errors take a fraction of a second.
"""

import difflib
import importlib
import os
import sys
import textwrap
from dataclasses import dataclass
from types import ModuleType

from absl import flags

import calce_jax
from calce_jax.commands.runner import USAGE, AbruptExit, define_verbosity, fail, run_main


@dataclass(frozen=True)
class Command:
    """A one-line summary of a command, and an example of its use."""

    summary: str
    example: str


COMMANDS = {
    "search": Command(
        "find moments in videos, and write a page that plays them",
        'calce search holiday.mp4 "a dog catches a ball"',
    ),
    "index": Command("keep a library of videos, to search them all at once", "calce index ~/Videos"),
    "ls": Command("list the videos of the library", "calce ls"),
    "cut": Command("cut a part out of a video", "calce cut holiday.mp4 1:06 1:17 --copy"),
    "web": Command("search videos in a browser", "calce web --checkpoint runs/demo"),
    "models": Command("list published models, and what is here of them", "calce models"),
    "push": Command("publish a trained model on the Hugging Face hub", "calce push runs/demo owner/name --private"),
    "fetch": Command("fetch published weights and annotations", "calce fetch --what=bert --out=downloads/bert"),
    "prepare": Command(
        "decode the videos of a dataset once, and write the tables that training reads",
        "calce prepare --dataset=shapes --videos=videos --srts=srts --annotations=train.jsonl --out=prepared",
    ),
    "caption": Command(
        "transcribe the speech of videos to .srt files", "calce caption --videos=videos --out=srts --model=tiny.en"
    ),
    "cache_features": Command(
        "store the features of the frozen vision encoder, so that training need not compute them again",
        "calce cache_features --config=qvhighlights,stage=2 --out=runs/features/qvhighlights",
    ),
    "train": Command("train one stage", "calce train --config=qvhighlights,stage=1 --workdir=runs/qvhighlights_stage1"),
    "fit_ranker": Command(
        "fit the ranker that chooses the segments of a library", "calce fit_ranker --checkpoint=runs/demo"
    ),
    "calibrate": Command(
        "measure from which score on a query happens in a video", "calce calibrate --checkpoint=runs/demo"
    ),
    "infer": Command(
        "predict the moments of every query of a split",
        "calce infer --workdir=runs/qvhighlights_stage1 --split=val --out=runs/qvhighlights_stage1/val.jsonl",
    ),
    "merge": Command(
        "add the windows that stage 1 predicted to the annotations of stage 2",
        "calce merge --predictions=val.jsonl --annotations=val.json --out=merged_val.jsonl",
    ),
    "evaluate": Command(
        "score predictions", "calce evaluate --predictions=val.jsonl --annotations=val.json --out=scores.json"
    ),
    "convert": Command(
        "convert weights between published formats and ours",
        "calce convert --source=hf:blip2,bert:bert --target=base:full.safetensors",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run `calce NAME ...`; without a name, or with `--help`, list the commands.

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("", "-h", "--help", "help"):
        print(usage())
    elif name in ("--version", "version"):
        print(f"calce_jax {calce_jax.__version__}")
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        fail(f"calce {name}: no such command; {hint}", USAGE)
    else:
        run(name, rest, f"calce {name}")


def launch(name: str) -> None:
    """Run a command from its script, `launch/NAME.py`."""
    # Python puts the script's folder first in sys.path, where launch/search.py would hide another module `search`.
    folder = os.path.dirname(os.path.realpath(sys.argv[0]))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != folder]
    run(name, sys.argv[1:], sys.argv[0])


def run(name: str, arguments: list[str], program: str) -> None:
    """Parse the flags of a command and run it.

    Args:
      name: a key of `COMMANDS`.
      arguments: the command line after the name.
      program: the program's name in messages, such as "calce search".

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    run_module(importlib.import_module(f"calce_jax.commands.{name}"), arguments, program, COMMANDS[name].example)


def run_module(module: ModuleType, arguments: list[str], program: str, example: str) -> None:
    """Parse the flags of a command's module and run it, or print its help.

    Args:
      module: with `FLAGS`, `main`, and perhaps `parse`, see `calce_jax.commands.runner.run_main`.
      arguments: the command line after the program's name.
      program: the program's name in messages.
      example: of a command line, for the help.

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    try:
        if set(arguments) & {"-h", "--help", "--helpfull", "--helpshort"}:
            run_main(lambda _: print(command_help(module, example)), [program], flags.FlagValues())
        else:
            run_main(module.main, [program, *arguments], module.FLAGS, getattr(module, "parse", None))
    except AbruptExit as end:
        # A thread may be compiling, or a library's be writing: taking the interpreter down under it would crash. With a
        # host lost, JAX would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(str(end.code)))


def usage() -> str:
    """Return the text of `calce --help`: an example, and the commands with their summaries."""
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return f"Example:\n  {COMMANDS['search'].example}\n\n{rows}\n\n`calce NAME --help` shows an example and all flags."


def command_help(module: ModuleType, example: str) -> str:
    """Return the text of `calce NAME --help`: the example, the module's docstring, and the flags."""
    values = module.FLAGS
    define_verbosity(values)
    lines = []
    for flag in sorted(values):
        description = " ".join((values[flag].help or "").split())
        default = values[flag].default_as_str
        if default not in (None, "None", "'None'", "''", ""):
            description += f" (default: {default})"
        indent = " " * 6
        lines.append(f"  --{flag}\n" + textwrap.fill(description, 110, initial_indent=indent, subsequent_indent=indent))
    flag_help = "\n".join(lines)
    return f"Example:\n  {example}\n\n{(module.__doc__ or '').strip()}\n\nFlags:\n{flag_help}"


if __name__ == "__main__":
    main()
