"""Publish a trained model on the Hugging Face hub: `calce push runs/demo owner/name [--private] [--license=mit]`.

Uploads both stages, the base weights, the tokenizers and a model card with the scores that the runs recorded. The token
is that of $HF_TOKEN, or of `hf auth login`. `calce search --checkpoint=hf:owner/name` searches with it.
"""

import click

from calce_jax.commands.command import FOLDER, Command, switch
from calce_jax.commands.flags.verify import apply_verify, verify_option
from calce_jax.errors import UsageError
from calce_jax.search.paths import find_stages


@click.command("push", cls=Command, help=__doc__)
@click.argument("folder_and_repo", nargs=-1, type=FOLDER, metavar="FOLDER owner/name")
@switch("private", help="create the repository as a private one")
@click.option(
    "--license", help="the hub's identifier of its licence, such as mit; the model card says if there is none"
)
@verify_option
def command(folder_and_repo: tuple[str, ...], private: bool, license: str | None, verify: str) -> None:
    """Upload the model and print the address of the commit."""
    if len(folder_and_repo) != 2:
        raise UsageError("give a folder and a repository: calce push runs/demo owner/name")
    folder, repo = folder_and_repo
    apply_verify(verify)
    find_stages(folder)

    from calce_jax.search.published.push import push_to_hub

    print(push_to_hub(folder, repo, private=private, licence=license))
