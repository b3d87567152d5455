"""The commands for people as click's commands: how their options are spelt, what help and errors show.

Options are written as flags of absl were, which the scripts for runs still use: --min_score and --min-score, -out=x,
--clips, --noclips and --clips=false are all understood.
"""

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem

from calce_jax.commands.runner import (
    DEFAULT_VERBOSITY,
    FALSE_WORDS,
    TRUE_WORDS,
    VERBOSITY_HELP,
    check_switches,
    exit_codes,
    expand_home,
    set_verbosity,
)
from calce_jax.commands.summaries import COMMANDS
from calce_jax.errors import UsageError

CONTEXT_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda name: name.replace("-", "_"),
    "show_default": True,
    "max_content_width": 120,
}


class PathName(click.ParamType):
    """A path, which a shell completes; the commands check themselves what is there.

    Args:
      kind: what is completed: "file" (files and folders) or "dir" (folders alone).
    """

    def __init__(self, kind: Literal["file", "dir"]) -> None:
        self.kind = kind
        self.name = "folder" if kind == "dir" else kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Leave the names to the shell."""
        return [CompletionItem(incomplete, type=self.kind)]


FILE, FOLDER = PathName("file"), PathName("dir")


class CommaSeparated(click.ParamType):
    """A list with commas, as a tuple; a shell completes each of its names."""

    name = "list"

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the parts of "a, b"; an empty text has none."""
        if not isinstance(value, str):
            return tuple(value)
        return tuple(part.strip() for part in value.split(",")) if value else ()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the lists that have one name more."""
        before, comma, start = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in self.choices if name.startswith(start)]


def switch(name: str, *, help: str, default: bool = False) -> Callable[[Any], Any]:
    """Return a decorator that adds --NAME and --noNAME to a command."""
    return click.option(f"--{name}/--no{name}", default=default, help=help)


class Command(click.Command):
    """A command for people, with --verbosity, an example in its usage, and the exit codes of `runner`."""

    def __init__(self, *arguments: Any, context_settings: dict[str, Any] | None = None, **settings: Any) -> None:
        super().__init__(*arguments, context_settings=CONTEXT_SETTINGS | (context_settings or {}), **settings)
        self.params.append(click.Option(["--verbosity"], type=int, default=DEFAULT_VERBOSITY, help=VERBOSITY_HELP))
        # The names under which absl has the help of a program.
        self.params.append(
            click.Option(
                ["--helpfull", "--helpshort"],
                is_flag=True,
                is_eager=True,
                hidden=True,
                expose_value=False,
                callback=_show_help,
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse a command line.

        Raises:
          click.UsageError: it is wrong, or a switch is followed by its value; names all required options that are
            missing.
        """
        if ctx.resilient_parsing:  # of a line that a shell is to complete
            return super().parse_args(ctx, args)
        arguments = list(self._normalized(ctx, map(expand_home, args)))
        try:
            check_switches(arguments, {option.opts[0][2:] for option in self._options() if option.secondary_opts})
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from None
        given = {argument.partition("=")[0] for argument in arguments}
        try:
            return super().parse_args(ctx, arguments)
        except click.NoSuchOption as error:
            if " " in error.option_name:
                raise click.UsageError("a sentence that begins with - goes after -- and all options", ctx) from None
            # click would also name every --no... that is a little like it
            names = [name for option in self._options() if not option.hidden for name in option.opts]
            nearest = get_close_matches(error.option_name, names, n=1)
            raise click.NoSuchOption(error.option_name, possibilities=nearest, ctx=ctx) from None
        except click.MissingParameter as error:
            missing = [name.opts[0] for name in self._options() if name.required and name.opts[0] not in given]
            if len(missing) < 2:
                raise
            *others, last = missing
            raise click.UsageError(f"{', '.join(others)} and {last} are missing", ctx) from error

    def _options(self) -> list[click.Option]:
        return [param for param in self.params if isinstance(param, click.Option)]

    def _normalized(self, ctx: click.Context, arguments: Iterator[str]) -> Iterator[str]:
        """Yield a command line with --name for -name and --na-me, and --name or --noname for --name=true or false."""
        options = {name.lstrip("-"): option for option in self._options() for name in option.opts}
        for argument in arguments:
            spelt, equals, value = argument.partition("=")
            name = spelt.lstrip("-").replace("-", "_")
            if argument == "--":
                yield argument
                yield from arguments
                return
            if not argument.startswith("-") or len(name) < 2:
                yield argument
                continue
            option = options.get(name)
            if option is not None and option.secondary_opts and equals:
                yield f"--{name}" if _is_true(ctx, option, value) else f"--no{name}"
                continue
            yield f"--{name}{equals}{value}"
            if option is not None and not option.is_flag and not equals:
                yield from islice(arguments, 1)  # its value, which may begin with "-"

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage, and an example of a use."""
        super().format_usage(ctx, formatter)
        formatter.write(f"Example: {COMMANDS[str(self.name)].example}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command's function.

        Raises:
          SystemExit: with an exit code of `runner`, if it fails.
        """
        set_verbosity(ctx.params.pop("verbosity"))
        with exit_codes(ctx.command_path):
            return super().invoke(ctx)


def _is_true(ctx: click.Context, option: click.Option, value: str) -> bool:
    if value.lower() not in TRUE_WORDS + FALSE_WORDS:
        raise click.BadParameter(f"must be true or false, got {value!r}", ctx, option)
    return value.lower() in TRUE_WORDS


def _show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(ctx.get_help())
        ctx.exit()
