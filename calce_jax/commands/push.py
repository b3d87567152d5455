"""Publish a trained model on the Hugging Face hub: `calce push runs/demo owner/name [--private] [--license=mit]`.

Uploads both stages, the base weights, the tokenizers and a model card with the scores that the runs recorded. The token
is that of $HF_TOKEN, or of `hf auth login`. `calce search --checkpoint=hf:owner/name` searches with it.
"""

from absl import flags

from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.errors import UsageError
from calce_jax.search.paths import find_stages

FLAGS = flags.FlagValues()
PRIVATE = flags.DEFINE_bool("private", False, "create the repository as a private one", flag_values=FLAGS)
LICENSE = flags.DEFINE_string(
    "license",
    None,
    "the hub's identifier of its licence, such as mit; the model card says if there is none",
    flag_values=FLAGS,
)
VERIFY_FLAG = VerifyFlag(FLAGS)


def main(argv: list[str]) -> None:
    """Upload the model and print the address of the commit."""
    if len(argv) != 3:
        raise UsageError("give a folder and a repository: calce push runs/demo owner/name")
    _, folder, repo = argv
    VERIFY_FLAG.apply()
    find_stages(folder)

    from calce_jax.search.published.push import push_to_hub

    print(push_to_hub(folder, repo, private=bool(PRIVATE.value), licence=LICENSE.value))
