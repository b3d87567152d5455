"""List the published models: `calce models [--json]`; `calce models --remove=calce-qvh` deletes one from this disk.

A model is fetched by `calce search --checkpoint=calce-qvh`, or by `calce_jax.load("calce-qvh", yes=True)`.
"""

from json import dumps

import click

from calce_jax.commands.command import Command, switch
from calce_jax.commands.flags.model import models_dir_option


@click.command("models", cls=Command, help=__doc__)
@models_dir_option
@switch("json", help="print a JSON list")
@click.option("--remove", metavar="NAME", help="delete this model and its downloads")
def command(models_dir: str | None, json: bool, remove: str | None) -> None:
    """Print each model: its size, its sources, its terms, and whether it is here."""
    from calce_jax.datasets.sources import MODELS
    from calce_jax.search.published.store import hub_models, model_paths, remove_model
    from calce_jax.storage.disk_space import format_bytes

    if remove:
        print(f"removed {remove}: {format_bytes(remove_model(remove, models_dir))}")
        return
    rows = []
    for name in [*MODELS, *hub_models(models_dir)]:
        model, paths = MODELS.get(name), model_paths(name, models_dir)
        rows.append(
            {
                "name": name,
                "description": model.description if model else "a model of the Hugging Face hub",
                "download_bytes": model.download_bytes if model else None,
                "disk_bytes": model.disk_bytes if model else None,
                "sources": list(model.sources()) if model else [f"https://huggingface.co/{name[3:]}"],
                "licence": model.licence if model else f"see {paths.folder / 'README.md'}",
                "complete": paths.is_complete,
                "folder": str(paths.folder) if paths.size() else None,
                "bytes": paths.size(),
            }
        )
    if json:
        print(dumps(rows, indent=2, ensure_ascii=False))
        return
    for row in rows:
        size = format_bytes(row["bytes"])
        state = (
            f"{size} in {row['folder']}" if row["complete"] else f"{size} of it fetched" if row["bytes"] else "not here"
        )
        print(f"{row['name']}: {row['description']}\n  here      {state}")
        if row["download_bytes"]:
            sizes = (
                f"about {format_bytes(row['download_bytes'])}, {format_bytes(row['disk_bytes'])} once it is converted"
            )
            print(f"  download  {sizes}")
        print(f"  from      {', '.join(row['sources'])}\n  terms     {row['licence']}")
