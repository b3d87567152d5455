"""What the docs tell people to type: the commands of README, docs/ and `calce --help`, and how each can be checked.

A command is parsed by the program's own flags and goes no further, so that no flag, no field of a config and no value
that is documented can be wrong. Where "..." stands for something, what has to be given is not asked for.
"""

import argparse
import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from absl import flags

from calce_jax.checkpoints.convert.sources import parse_sources
from calce_jax.checkpoints.convert.targets import parse_target
from calce_jax.commands.cli import COMMANDS
from calce_jax.config import validate
from configs.calce import get_config
from tests.helpers.commands import script

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_PATTERN = re.compile(r"(\S*/bin/)?(calce|python|pip|make|tensorboard|ffmpeg|taskset) |launch/\w+\.py\b")
# Programs of others, which are looked at no further.
EXTERNAL_PROGRAMS = {"tensorboard", "ffmpeg"}
TAKES_FILES = {"search"}  # take files beside flags
REQUIRED_PACKAGE = {"web": "gradio"}  # packages that a script cannot be read without


@dataclass(frozen=True)
class Command:
    """A command of a page: where it stands, its words, and whether it is there in full."""

    location: str
    words: tuple[str, ...]
    is_complete: bool

    def __str__(self) -> str:
        return f"{self.location} {' '.join(self.words)}"


def commands() -> Iterator[Command]:
    """Return the commands of all pages, and the examples that `calce` shows."""
    for page in PAGES:
        name = page.name
        for number, text in code_lines(page.read_text(encoding="utf-8")):
            if COMMAND_PATTERN.match(text):
                yield command(f"{name}:{number}", text, is_complete=True)
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            for text in re.findall(r"(?<!`)`([^`]+)`", line) if not line.startswith("    ") else ():
                if COMMAND_PATTERN.match(text):
                    yield command(f"{name}:{number}", text, is_complete=False)
    for name, entry in COMMANDS.items():
        yield command(f"calce {name} --help", entry.example, is_complete=True)


def code_lines(page: str) -> Iterator[tuple[int, str]]:
    """Return (number, text) of the lines of a page's blocks of code; what goes on after a backslash is one line."""
    in_fence, line_so_far, first = False, "", 0
    for number, line in enumerate(page.splitlines(), 1):
        if line.strip().startswith("```"):
            in_fence = not in_fence
        elif in_fence or line.startswith("    ") or line_so_far:
            first = first if line_so_far else number
            line_so_far += line.strip().removesuffix("\\") + " "
            if not line.endswith("\\"):
                yield first, line_so_far.strip()
                line_so_far = ""


def command(location: str, text: str, *, is_complete: bool) -> Command:
    """Return a command, without what stands before the program, and without comments."""
    words = shlex.split(text, comments=True)
    while words[0] == "taskset" or re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[3:] if words[0] == "taskset" else words[1:]
    is_complete &= not any("..." in word or word.startswith("[") for word in words)
    program, *rest = (word.strip("[]") if word.startswith("[") else word for word in words)
    return Command(location, (Path(program).name if "/bin/" in program else program, *rest), is_complete)


def check_command(command: Command) -> None:
    """Refuse what the program would not understand.

    Raises:
      AssertionError, SystemExit, flags.Error: it would not.
      ImportError: the program needs a package that is absent.
    """
    program, *rest = command.words
    if program in EXTERNAL_PROGRAMS:
        return
    if program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "pip":
        check_pip(rest)
    elif program == "calce":
        if rest != ["--help"]:
            assert rest[0] in COMMANDS
            check_script(rest[0], rest[1:], is_complete=command.is_complete)
    elif program.startswith("launch/"):
        check_script(Path(program).stem, rest, is_complete=command.is_complete)
    elif rest[0] == "-c":
        compile(rest[1], command.location, "exec")
    elif rest[0].startswith("launch/"):
        check_script(Path(rest[0]).stem, rest[1:], is_complete=command.is_complete)
    else:
        module, arguments = (rest[1], rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])
        check_module(module.removesuffix(".py").replace("/", "."), arguments)


def check_pip(words: list[str]) -> None:
    """Refuse files and extras that do not exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    for before, word in pairwise(words):
        assert before != "-c" or (ROOT / word).is_file()
        assert set(re.findall(r"\w+", (re.findall(r"\[(.*)", word) or [""])[0])) <= extras.keys()


def check_script(name: str, arguments: list[str], *, is_complete: bool) -> None:
    """Refuse what `launch/<name>.py` would not take."""
    assert (ROOT / "launch" / f"{name}.py").is_file()
    if not arguments:
        return
    if name in REQUIRED_PACKAGE:
        importlib.import_module(REQUIRED_PACKAGE[name])
    placeholders = [word for word in arguments if re.fullmatch(r"(--\w+=)?\.\.\.", word)]
    argv = [name, *(word for word in arguments if word not in placeholders)]
    with script(name) as module, patch.object(sys, "argv", argv):
        assert {word[2:-4] for word in placeholders} <= {"", *flags.FLAGS}
        try:
            positional = getattr(module, "parse", flags.FLAGS)(argv)[1:]
        except (flags.Error, SystemExit) as error:
            if is_complete or "must have a value other than None" not in str(error):
                raise
            return
        assert not positional or name in TAKES_FILES or "--" in arguments, f"{positional}: not taken"
        flag_values = {flag: flags.FLAGS[flag].value for flag in flags.FLAGS}
        if flag_values.get("config") is not None:
            validate(flag_values["config"])
        if name == "convert" and is_complete:
            get_config(f"{flag_values['run']},size={flag_values['size']}")
            parse_sources(flag_values["source"])
            parse_target(flag_values["target"])


class CommandParsed(Exception):
    """The command line was understood; the program need not go on."""


def check_module(name: str, arguments: list[str]) -> None:
    """Refuse what a program outside of `launch/` would not take.

    Raises:
      ImportError: it needs a package that is absent.
    """
    flags_before = set(flags.FLAGS)
    parse = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        parse(parser, arguments)
        raise CommandParsed

    def flags_parsed(*_: object, **__: object) -> None:
        flags.FLAGS([name, *arguments])
        raise CommandParsed

    try:
        module = importlib.import_module(name)
        if not hasattr(module, "main"):
            module = importlib.import_module(f"{name}.__main__")
        if set(flags.FLAGS) > flags_before:
            flags_parsed()
        with patch.object(argparse.ArgumentParser, "parse_args", parsed):
            module.main()
    except CommandParsed:
        return
    finally:
        flags.FLAGS.unparse_flags()
        for flag in set(flags.FLAGS) - flags_before:
            delattr(flags.FLAGS, flag)
    raise AssertionError(f"{name} reads no arguments")
