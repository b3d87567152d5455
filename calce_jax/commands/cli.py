"""The `calce` command: `calce NAME ...` runs `calce_jax.commands.NAME`.

The module of a command is imported when it is run, or its help or completion is asked for; this module and the top
level of those import neither jax nor transformers nor TFDS. So help, completion and usage errors take a fraction of a
second.
"""

import importlib
import os
import sys

import click
from click.shell_completion import CompletionItem, shell_complete

import calce_jax
from calce_jax.commands.command import CONTEXT_SETTINGS
from calce_jax.commands.completion import COMPLETION_VARIABLE, PROGRAM
from calce_jax.commands.flags.command import FlagsCommand
from calce_jax.commands.interrupts import interrupt_ends_process
from calce_jax.commands.process import garbage_kept, open_missing_streams
from calce_jax.commands.runner import USAGE, end_abruptly, exit_codes, fail, set_up_process
from calce_jax.commands.summaries import COMMANDS

WORDS = {"help": "--help", "version": "--version"}


class CommandGroup(click.Group):
    """The commands of `COMMANDS`, each imported when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of that name."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the name, the command and its arguments.

        Raises:
          click.UsageError: there is no such command; names the nearest.
        """
        try:
            return super().resolve_command(ctx, args)
        except click.exceptions.NoSuchCommand as error:  # click compares with commands that are imported already
            raise click.exceptions.NoSuchCommand(error.command_name, possibilities=COMMANDS, ctx=ctx) from None

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage, and an example of a use."""
        super().format_usage(ctx, formatter)
        formatter.write(f"Example: {COMMANDS['search'].example}\n")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the names of the commands with their summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that begin so."""
        names = [
            CompletionItem(name, help=command.summary)
            for name, command in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    PROGRAM,
    cls=CommandGroup,
    context_settings=CONTEXT_SETTINGS,
    epilog="`calce NAME --help` shows an example and all options of a command.",
)
@click.version_option(calce_jax.__version__, message="calce_jax %(version)s")
def calce() -> None:
    """Video moment retrieval: find the seconds of a video in which a sentence happens, and train models that do."""


def main(argv: list[str] | None = None) -> None:
    """Run `calce NAME ...`; without a name, or with `--help`, list the commands.

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    if instruction := os.environ.get(COMPLETION_VARIABLE):
        raise SystemExit(shell_complete(calce, {}, PROGRAM, COMPLETION_VARIABLE, instruction))
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    run(calce, [WORDS.get(arguments[0], arguments[0]), *arguments[1:]], PROGRAM)


def launch(name: str) -> None:
    """Run a command from its script, `launch/NAME.py`."""
    interrupt_ends_process()
    open_missing_streams()
    # Python puts the script's folder first in sys.path, where launch/search.py would hide another module `search`.
    folder = os.path.dirname(os.path.realpath(sys.argv[0]))
    sys.path[:] = [path for path in sys.path if os.path.realpath(path) != folder]
    run(load_command(name), sys.argv[1:], sys.argv[0])


def load_command(name: str) -> click.Command:
    """Import a command.

    Args:
      name: a key of `COMMANDS`. Its module has `command`, or flags of absl as `FLAGS` and a function `main`.
    """
    with garbage_kept():
        module = importlib.import_module(f"calce_jax.commands.{name}")
    return module.command if hasattr(module, "command") else FlagsCommand(name, module)


def run(command: click.Command, arguments: list[str], program: str) -> None:
    """Run a command in a process of its own, which an interrupted command ends at once.

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    with end_abruptly():
        invoke(command, arguments, program)


def invoke(command: click.Command, arguments: list[str], program: str) -> None:
    """Parse the options of a command and call it.

    Args:
      command: a command, or the group of all.
      arguments: the command line after the program's name.
      program: the program's name in messages, such as "calce search".

    Raises:
      SystemExit: with an exit code of `calce_jax.commands.runner`.
    """
    set_up_process()
    with exit_codes(program):
        try:
            with command.make_context(program, arguments) as context:
                command.invoke(context)
        except click.exceptions.Exit:  # after --help and --version
            return
        except click.UsageError as error:
            context = error.ctx or click.Context(command, info_name=program)
            path = context.command_path
            fail(f"{path}: {error.format_message()}\n{context.get_usage()}\nHelp: {path} --help", USAGE)


if __name__ == "__main__":
    interrupt_ends_process()
    main()
