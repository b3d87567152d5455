"""Print the script with which a shell completes `calce`: `eval "$(calce completion bash)"`.

Commands, options and the choices of options are completed, and files and folders where an option takes one. Put the
line into ~/.bashrc, or `calce completion zsh` into ~/.zshrc; for fish write the script to
~/.config/fish/completions/calce.fish. In bash write a space, not "=", before a value that is to be completed.
"""

import click
from click.shell_completion import get_completion_class

from calce_jax.commands.command import Command

PROGRAM = "calce"
COMPLETION_VARIABLE = "_CALCE_COMPLETE"  # set by the script when the shell asks, see `calce_jax.commands.cli.main`


@click.command("completion", cls=Command, help=__doc__)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script."""
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    print(completion_class(click.Group(PROGRAM), {}, PROGRAM, COMPLETION_VARIABLE).source(), end="")
