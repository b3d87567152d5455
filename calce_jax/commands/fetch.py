"""Download published weights: `calce fetch --what=blip2|bert|whisper|calce-qvh|calce-charades --out=DIR`.

Prints the licence, and instructions for files that cannot be downloaded automatically. Run the same command again to
continue; checksums of existing files are verified. $HF_ENDPOINT names a mirror of the Hugging Face hub.
"""

from absl import flags

from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.runner import no_arguments
from calce_jax.datasets.sources import PUBLICATIONS

FLAGS = flags.FlagValues()
WHAT = flags.DEFINE_enum(
    "what", None, list(PUBLICATIONS), "the publication, see calce_jax/datasets/sources.py", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "output folder; nothing is written elsewhere", flag_values=FLAGS)
flags.mark_flags_as_required(["what", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Print the licence, download the files, print the next steps."""
    no_arguments(argv)
    check_folder("--out=", str(OUT.value))

    from calce_jax.datasets.download import FetchError, fetch

    publication = PUBLICATIONS[str(WHAT.value)]
    print(f"{publication.description}\nTerms: {publication.licence}", flush=True)
    files, faults = fetch(publication, str(OUT.value))
    if unchecked := [file.file for file in files if not file.checked]:
        print(f"no published checksum for {', '.join(unchecked)}: compare the sha256 with that of another copy")
    if faults:
        raise FetchError("\n".join(map(str, faults)))
    print(f"{len(files)} files are in {OUT.value}. {publication.next_steps.format(out=OUT.value)}")
