"""The scripts for runs as commands of click's group: their flags are absl's, and their help has the same parts."""

import textwrap
from types import ModuleType
from typing import Any

import click
from absl import flags

from calce_jax.commands.command import FILE
from calce_jax.commands.runner import define_verbosity, run_main
from calce_jax.commands.summaries import COMMANDS

HELP_FLAGS = {"-h", "--help", "--helpfull", "--helpshort"}


class FlagsCommand(click.Command):
    """A command whose module has `FLAGS`, `main` and perhaps `parse`, see `calce_jax.commands.runner.run_main`.

    click gets its flags as options for completion alone.
    """

    def __init__(self, name: str, module: ModuleType) -> None:
        define_verbosity(module.FLAGS)
        # A config that was parsed has defined a flag for each of its fields, such as config.seed.
        options = [_option(module.FLAGS[flag]) for flag in sorted(module.FLAGS) if "." not in flag]
        super().__init__(name, params=list(options), add_help_option=False)
        self.module = module

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the arguments to absl."""
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: click.Context) -> Any:
        """Run the module, or print its help."""
        run_module(self.module, ctx.args, ctx.command_path, COMMANDS[str(self.name)].example)


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
    if set(arguments) & HELP_FLAGS:
        run_main(lambda _: print(command_help(module, example)), [program], flags.FlagValues())
    else:
        run_main(module.main, [program, *arguments], module.FLAGS, getattr(module, "parse", None))


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


def _option(flag: flags.Flag) -> click.Option:
    choices = getattr(flag.parser, "enum_values", None)
    return click.Option(
        [f"--{flag.name}"],
        is_flag=flag.boolean,
        type=click.BOOL if flag.boolean else click.Choice(choices) if choices else FILE,
        help=flag.help,
    )
