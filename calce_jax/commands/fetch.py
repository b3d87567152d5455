"""Fetch what others published: `launch/fetch.py --what=blip2|bert|whisper|calce-qvh|calce-charades --out=DIR`.

Prints the terms, and what to do by hand where a source refuses. The same command goes on where it stopped, and checks
what is there. `$HF_ENDPOINT` names a mirror of the Hugging Face hub.
"""

from absl import app, flags

from calce_jax.datasets.download import NoNetworkError, fetch
from calce_jax.datasets.sources import PUBLISHED

WHAT = flags.DEFINE_enum("what", None, list(PUBLISHED), "what to fetch, see calce_jax/datasets/sources.py")
OUT = flags.DEFINE_string("out", None, "the folder it goes to; nothing is written elsewhere")
flags.mark_flags_as_required(["what", "out"])


def main(argv: list[str]) -> None:
    """Tell the terms, fetch, say what is left to do."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    publication = PUBLISHED[str(WHAT.value)]
    print(f"{publication.about}\nTerms: {publication.licence}", flush=True)
    try:
        files, faults = fetch(publication, str(OUT.value))
    except (NoNetworkError, OSError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    if unchecked := [each.file for each in files if not each.checked]:
        print(f"nobody tells a checksum of {', '.join(unchecked)}: compare the sha256 with another copy's")
    if faults:
        raise SystemExit("\n".join(f"FetchError: {fault}" for fault in faults))
    print(f"{len(files)} files are in {OUT.value}. {publication.then.format(out=OUT.value)}")


if __name__ == "__main__":
    app.run(main)
