"""The commands in README.md, docs/ and `calce --help`, and how to check them.

A command is parsed by the program's own flags but not run, so that every documented flag, value and field of a config
exists. Required flags may be missing from a command that contains "...".
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

import click
from absl import flags

from calce_jax.checkpoints.convert.formats import parse_sources, parse_target
from calce_jax.commands.cli import COMMANDS
from calce_jax.commands.flags.command import FlagsCommand
from calce_jax.config import validate
from calce_jax.presets.runs import get_preset
from tests.helpers.commands import load_command, unchanged_process

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND_PATTERN = re.compile(r"(\S*/bin/)?(calce|python|pip|make|tensorboard|ffmpeg|taskset) |launch/\w+\.py\b")
EXTERNAL_PROGRAMS = {"tensorboard", "ffmpeg"}  # not checked


@dataclass(frozen=True)
class Command:
    """A command: the page and line, its words, and whether it is complete, without "..." or [options]."""

    location: str
    words: tuple[str, ...]
    is_complete: bool

    def __str__(self) -> str:
        return f"{self.location} {' '.join(self.words)}"


def page_commands(page: Path) -> Iterator[Command]:
    """Yield the commands of a page: of its code blocks, and of inline code, where they may be incomplete."""
    content = page.read_text(encoding="utf-8")
    for number, text in code_lines(content):
        if COMMAND_PATTERN.match(text):
            yield command(f"{page.name}:{number}", text, is_complete=True)
    for number, line in enumerate(content.splitlines(), 1):
        for text in re.findall(r"(?<!`)`([^`]+)`", line) if not line.startswith("    ") else ():
            if COMMAND_PATTERN.match(text):
                yield command(f"{page.name}:{number}", text, is_complete=False)


def help_commands() -> Iterator[Command]:
    """Yield the examples in the help of the commands."""
    for name, entry in COMMANDS.items():
        yield command(f"calce {name} --help", entry.example, is_complete=True)


def code_lines(page: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of the lines in code blocks of a page; joins lines that end with a backslash."""
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
    """Parse a command; environment variables and `taskset` before the program, and comments, are left out."""
    words = shlex.split(text, comments=True)
    while words[0] == "taskset" or re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[3:] if words[0] == "taskset" else words[1:]
    is_complete &= not any("..." in word or word.startswith("[") for word in words)
    program, *rest = (word.strip("[]") if word.startswith("[") else word for word in words)
    return Command(location, (Path(program).name if "/bin/" in program else program, *rest), is_complete)


def check_command(command: Command) -> None:
    """Parse a command with the flags of its program.

    Raises:
      AssertionError, SystemExit, flags.Error, UserError: it has an error.
      ImportError: the program needs a package that is not installed.
    """
    program, *rest = command.words
    if program in EXTERNAL_PROGRAMS:
        return
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program == "pip":
        check_pip(rest)
    elif program == "calce":
        if rest[0] not in ("--help", "--version", "NAME"):
            assert rest[0] in COMMANDS, f"no command {rest[0]}"
            check_arguments(rest[0], rest[1:], is_complete=command.is_complete)
    elif program.startswith("launch/"):
        check_script(program, rest, is_complete=command.is_complete)
    elif rest[0] == "-c":
        compile(rest[1], command.location, "exec")
    elif rest[0].startswith("launch/"):
        check_script(rest[0], rest[1:], is_complete=command.is_complete)
    else:
        module, arguments = (rest[1], rest[2:]) if rest[0] == "-m" else (rest[0], rest[1:])
        check_module(module.removesuffix(".py").replace("/", "."), arguments)


def check_pip(words: list[str]) -> None:
    """Check that the files and extras of `pip install`, `pip wheel` and `pip uninstall` exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] in {"install", "wheel", "uninstall"}
    for before, word in pairwise(words):
        assert before != "-c" or (ROOT / word).is_file()
        assert set(re.findall(r"\w+", (re.findall(r"\[(.*)", word) or [""])[0])) <= extras.keys()


def check_script(path: str, arguments: list[str], *, is_complete: bool) -> None:
    """Check the arguments of a script in launch/."""
    assert (ROOT / path).is_file()
    name = Path(path).stem
    if name in COMMANDS:
        check_arguments(name, arguments, is_complete=is_complete)
    elif arguments:
        check_module(f"launch.{name}", arguments)


def check_arguments(name: str, arguments: list[str], *, is_complete: bool) -> None:
    """Check the arguments of `calce NAME`, also the values of its config."""
    if not arguments or arguments == ["--help"]:
        return
    command = load_command(name)
    placeholders = [word for word in arguments if re.fullmatch(r"(--\w+=)?\.\.\.", word)]
    assert {word[:-4] for word in placeholders} <= {"", *(name for param in command.params for name in param.opts)}
    arguments = [word for word in arguments if word not in placeholders]
    if not isinstance(command, FlagsCommand):
        try:
            command.make_context(f"calce {name}", arguments)
        except click.UsageError as error:
            is_missing = isinstance(error, click.MissingParameter) or error.message.endswith(" are missing")
            if is_complete or not is_missing:
                raise
        return
    module, argv = command.module, [f"calce {name}", *arguments]
    with unchanged_process(), patch.object(sys, "argv", argv):
        try:
            parse = getattr(module, "parse", None)
            positional = (parse(module.FLAGS, argv) if parse else module.FLAGS(argv))[1:]
        except flags.Error as error:
            missing = ("must have a value other than None", "Missing value for flag")
            if is_complete or not any(message in str(error) for message in missing):
                raise
            return
        values = {flag: module.FLAGS[flag].value for flag in module.FLAGS}
        if values.get("config") is not None:
            validate(values["config"])
    assert not positional or "--" in arguments, f"unknown arguments: {positional}"
    if name == "convert" and is_complete:
        get_preset(f"{values['run']},size={values['size']}")
        parse_sources(values["source"])
        parse_target(values["target"])


class CommandParsed(Exception):
    """Stops a program after its arguments were parsed."""


def check_module(name: str, arguments: list[str]) -> None:
    """Check the arguments of `python -m NAME`, which parses them with argparse or with absl's flags.

    Raises:
      ImportError: it needs a package that is not installed.
    """
    own_flags: list[flags.Flag] = []
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
        # Libraries that are imported for the first time define flags as well.
        own_flags += flags.FLAGS.get_flags_for_module(module)
        if own_flags:
            flags_parsed()
        with patch.object(argparse.ArgumentParser, "parse_args", parsed):
            module.main()
    except CommandParsed:
        return
    finally:
        flags.FLAGS.unparse_flags()
        for flag in own_flags:
            if flag.name in flags.FLAGS:
                delattr(flags.FLAGS, flag.name)
        # Another test may import it again, and define its flags again.
        if own_flags:
            sys.modules.pop(module.__name__, None)
    raise AssertionError(f"{name} reads no arguments")
