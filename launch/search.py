"""Find a moment: `launch/search.py VIDEO --query="a red circle moves to the left" --checkpoint=runs/demo --out=DIR`.

Writes DIR/moments.json and DIR/index.html. `--query` may be given several times; `--srt` brings the captions.
"""

from pathlib import Path

from absl import app, flags

from calce_jax.checkpoints import CheckpointError
from calce_jax.search import Searcher, write_results

QUERY = flags.DEFINE_multi_string("query", None, "what to look for, a sentence")
SRT = flags.DEFINE_string("srt", None, "captions; by default VIDEO's name with .srt, where there is such a file")
CHECKPOINT = flags.DEFINE_string("checkpoint", "runs/demo", "folder that holds the workdirs stage1 and stage2")
OUT = flags.DEFINE_string("out", None, "folder for moments.json and index.html")
flags.mark_flags_as_required(["query", "out"])


def main(argv: list[str]) -> None:
    """Search, print a table, write the page."""
    if len(argv) != 2:
        raise app.UsageError('give one video: launch/search.py VIDEO --query="..." --out=DIR')
    video = Path(argv[1])
    beside = video.with_suffix(".srt")
    try:
        srt = SRT.value or (beside if beside.is_file() else None)
        found = Searcher(str(CHECKPOINT.value)).search(video, list(QUERY.value or []), srt)
        write_results(str(OUT.value), video, found)
    except (CheckpointError, OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for each in found:
        print(each.example.query)
        for start, end, score in each.moments:
            print(f"  {start:8.1f} s to {end:8.1f} s   score {score:.2f}")
        if not each.moments:
            print("  no moment found")
    print(f"wrote {OUT.value}/moments.json and {OUT.value}/index.html")


if __name__ == "__main__":
    app.run(main)
