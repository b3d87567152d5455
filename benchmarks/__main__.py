"""Run all benchmarks, each in its own process: `python -m benchmarks [options of each]`.

Prints their rows, and at the end a table for docs/benchmarks.md. A benchmark whose packages are missing fails alone.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.paired import parse_args

SUBJECTS = ("vision", "qformer", "t5", "generation", "stage1", "metrics", "decoding", "reading")


def main() -> int:
    """Run every benchmark and return the number of failed ones."""
    settings, _ = parse_args(__doc__)
    failed = [
        subject
        for subject in SUBJECTS
        if subprocess.run([sys.executable, "-m", f"benchmarks.{subject}", *sys.argv[1:]], check=False).returncode
    ]
    print("\n" + table([settings.out / f"{subject}.json" for subject in SUBJECTS if subject not in failed]))
    if failed:
        print(f"failed: {', '.join(failed)}")
    return len(failed)


def table(results: list[Path]) -> str:
    """Return the rows of JSON results as a Markdown table."""
    lines = ["| what | ours | the other | ratio | lowest to highest | compiling | |", "|---|---|---|---|---|---|---|"]
    for path in results:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            lines.append(
                f"| {row['name']} | {1e3 * row['ours']:.1f} ms | {row['other']}: {1e3 * row['theirs']:.1f} ms "
                f"| {row['ratio']:.2f} | {row['lowest']:.2f} to {row['highest']:.2f} | {row['compile_s']:.1f} s "
                f"| {row['agreement']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
