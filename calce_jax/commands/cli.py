"""The `calce` command: `calce NAME ...` runs `calce_jax.commands.NAME`.

Nothing here and nothing at the top of a command's module imports jax, transformers or TFDS, so that help and mistakes
are answered at once.
"""

import difflib
import importlib
import os
import sys
import textwrap
from dataclasses import dataclass
from types import ModuleType

from absl import flags

from calce_jax.commands.runner import USAGE, fail, run_main
from calce_jax.storage.provenance import installed_version


@dataclass(frozen=True)
class Command:
    """One command: what it does, and an example that can be typed."""

    summary: str
    example: str


COMMANDS = {
    "search": Command(
        "find moments in videos, and write a page that plays them",
        'calce search holiday.mp4 --query "a dog catches a ball" --out found',
    ),
    "web": Command("the same in a browser", "calce web --checkpoint runs/demo"),
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
    "infer": Command(
        "predict the moments of every query of a split",
        "calce infer --workdir=runs/qvhighlights_stage1 --split=val --out=runs/qvhighlights_stage1/val.jsonl",
    ),
    "merge": Command(
        "put stage 1's windows into stage 2's annotations",
        "calce merge --predictions=val.jsonl --annotations=val.json --out=merged_val.jsonl",
    ),
    "evaluate": Command(
        "score predictions", "calce evaluate --predictions=val.jsonl --annotations=val.json --out=scores.json"
    ),
    "convert": Command(
        "convert published weights to ours, and back",
        "calce convert --source=hf:blip2,bert:bert --target=base:full.safetensors",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run `calce NAME ...`; without a name, or with `--help`, print the commands.

    Raises:
      SystemExit: with 2 after a mistake in the command line, 1 where the work could not be done, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else argv
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in ("", "-h", "--help", "help"):
        print(usage())
    elif name in ("--version", "version"):
        print(f"calce_jax {installed_version()}")
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        fail(f"calce {name}: no such command; {hint}", USAGE)
    else:
        run(name, rest, f"calce {name}")


def launch(name: str) -> None:
    """Run a command as `launch/NAME.py` does."""
    # The folder of the script must not hide packages of the same name as one of its files.
    script_dir = os.path.realpath(os.path.dirname(sys.argv[0]))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != script_dir]
    run(name, sys.argv[1:], sys.argv[0])


def run(name: str, arguments: list[str], program: str) -> None:
    """Parse the flags of a command and run it.

    Args:
      name: a key of `COMMANDS`.
      arguments: what follows it on the command line.
      program: what the user typed, for messages.

    Raises:
      SystemExit: see `main`.
    """
    module = importlib.import_module(f"calce_jax.commands.{name}")
    if set(arguments) & {"-h", "--help", "--helpfull", "--helpshort"}:
        run_main(lambda _: print(command_help(name, module)), [program], flags.FlagValues())
    else:
        run_main(module.main, [program, *arguments], module.FLAGS, getattr(module, "parse", None))


def usage() -> str:
    """Return the list of commands, after an example."""
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return f"Example:\n  {COMMANDS['search'].example}\n\n{rows}\n\n`calce NAME --help` shows an example and all flags."


def command_help(name: str, module: ModuleType) -> str:
    """Return an example, the docstring of a command's module, and its flags."""
    values = module.FLAGS
    lines = []
    for flag in sorted(values):
        about = values[flag].help or ""
        default = values[flag].default_as_str
        more = f" (default: {default})" if default not in (None, "None", "''", "") else ""
        indent = " " * 6
        lines.append(
            f"  --{flag}\n" + textwrap.fill(about + more, 110, initial_indent=indent, subsequent_indent=indent)
        )
    flag_help = "\n".join(lines)
    return f"Example:\n  {COMMANDS[name].example}\n\n{(module.__doc__ or '').strip()}\n\nFlags:\n{flag_help}"


if __name__ == "__main__":
    main()
