"""Show the config of a run: `calce config qvhighlights,stage=2`, or `calce config FILE.py:PRESET`.

Prints every field with its value, its meaning and what is allowed, as `calce train` has them with
`--config=qvhighlights,stage=2`. `--config.data.frames=100` sets a field, as it does there; --json prints JSON.
"""

from json import dumps
from shlex import quote

import click
from absl import flags

from calce_jax.commands.command import FILE, Command, switch
from calce_jax.commands.flags.config import define_config, parse_config, validate_config
from calce_jax.commands.runner import first_cause
from calce_jax.config import GroupDescription, describe
from calce_jax.errors import UserError


@click.command("config", cls=Command, help=__doc__, context_settings={"ignore_unknown_options": True})
@click.argument("preset", type=FILE)
@click.argument("fields", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
@switch(
    "json", help='print JSON: {"data.frames": {"name": "data.frames", "value": 75, "meaning": "...", "allowed": "..."}}'
)
@click.pass_context
def command(ctx: click.Context, preset: str, fields: tuple[str, ...], json: bool) -> None:
    """Print the fields."""
    if unknown := [field for field in fields if not field.startswith("--config.")]:
        if unknown[0].startswith("-"):
            raise click.NoSuchOption(unknown[0].partition("=")[0], possibilities=["--json", "--config."], ctx=ctx)
        raise click.UsageError(f"unknown argument: {unknown[0]}; set fields with --config.FIELD=VALUE", ctx)
    values = flags.FlagValues()
    holder = define_config(values)
    try:
        parse_config(values, [ctx.command_path, f"--config={preset}", *fields])
    except (flags.Error, UserError) as error:
        raise click.UsageError(first_cause(error), ctx) from error
    groups = describe(validate_config(holder))
    if json:
        rows = {field.name: field._asdict() for group in groups for field in group.fields}
        print(dumps(rows, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(map(format_group, groups)))


def format_group(group: GroupDescription) -> str:
    """Return the text of a group; a field is written as the flag that sets it."""
    lines = [f"{group.name}: {group.meaning}" if group.name else group.meaning]
    for field in group.fields:
        lines += [f"  --config.{field.name}={quote(str(field.value))}", f"      {field.meaning}; {field.allowed}"]
    return "\n".join(lines)
