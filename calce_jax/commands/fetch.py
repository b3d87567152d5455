"""Download published weights: `calce fetch --what=blip2|bert|whisper|calce-qvh|calce-charades --out=DIR`.

Prints the licence, and instructions for files that cannot be downloaded automatically. Run the same command again to
continue; checksums of existing files are verified. $HF_ENDPOINT names a mirror of the Hugging Face hub.
"""

import click

from calce_jax.commands.command import FOLDER, Command
from calce_jax.commands.flags.paths import check_folder
from calce_jax.datasets.sources import PUBLICATIONS


@click.command("fetch", cls=Command, help=__doc__)
@click.option(
    "--what",
    type=click.Choice(list(PUBLICATIONS)),
    required=True,
    help="the publication, see calce_jax/datasets/sources.py",
)
@click.option("--out", type=FOLDER, required=True, help="output folder; nothing is written elsewhere")
def command(what: str, out: str) -> None:
    """Print the licence, download the files, print the next steps."""
    check_folder("--out=", out)

    from calce_jax.datasets.download import fetch
    from calce_jax.datasets.fetched_files import FetchError

    publication = PUBLICATIONS[what]
    print(f"{publication.description}\nTerms: {publication.licence}", flush=True)
    files, faults = fetch(publication, out)
    if unchecked := [file.file for file in files if not file.checked]:
        print(f"no published checksum for {', '.join(unchecked)}: compare the sha256 with that of another copy")
    if faults:
        raise FetchError("\n".join(map(str, faults)))
    print(f"{len(files)} files are in {out}. {publication.next_steps.format(out=out)}")
