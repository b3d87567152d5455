"""List the published models: `calce models [--json]`; `calce models --remove=calce-qvh` deletes one from this disk.

A model is fetched by `calce search --checkpoint=calce-qvh`, or by `calce_jax.load("calce-qvh", yes=True)`.
"""

import json

from absl import flags

from calce_jax.commands.flags.model import define_models_dir
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
MODELS_DIR = define_models_dir(FLAGS)
JSON = flags.DEFINE_bool("json", False, "print a JSON list", flag_values=FLAGS)
REMOVE = flags.DEFINE_string("remove", None, "delete this model and its downloads", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Print each model: its size, its sources, its terms, and whether it is here."""
    no_arguments(argv)

    from calce_jax.datasets.sources import MODELS
    from calce_jax.search.published.store import hub_models, model_paths, remove_model
    from calce_jax.storage.disk_space import format_bytes

    if REMOVE.value:
        print(f"removed {REMOVE.value}: {format_bytes(remove_model(REMOVE.value, MODELS_DIR.value))}")
        return
    rows = []
    for name in [*MODELS, *hub_models(MODELS_DIR.value)]:
        model, paths = MODELS.get(name), model_paths(name, MODELS_DIR.value)
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
    if JSON.value:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
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
