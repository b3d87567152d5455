"""Break the code in one place after the other, run the tests of that part, and list the changes nobody noticed.

    python -m tests.mutants --named             # the changes of named.py
    python -m tests.mutants --sample=200        # so many changes of operators and constants of the heart
    python -m tests.mutants --sample=20 --only=keyframes

Tests run as in `make test`, without recordings of the original. A copy of the checkout is changed, never the checkout.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.named import NAMED
from tests.mutants.operators import heart_files, mutants_of

TIMEOUT_S = 1800
CHECKED_OUT = ("calce_jax", "configs", "data", "launch", "benchmarks", "tests", "docs", "README.md", "pyproject.toml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants asked for; return 1 if one of the named survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--named", action="store_true", help="the changes of named.py")
    parser.add_argument("--sample", type=int, default=0, help="number of changes drawn from the heart")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="part of the file's name")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tested side by side")
    parser.add_argument(
        "--out", default="runs/mutants.json", help="the results, a JSON list; rows in it are not run again"
    )
    options = parser.parse_args(argv)

    mutants = [mutant for mutant in NAMED if options.named and options.only in mutant.path]
    drawn = [mutant for path in heart_files() if options.only in path for mutant in mutants_of(path)]
    mutants += random.Random(options.seed).sample(drawn, min(options.sample, len(drawn)))
    out = Path(options.out)
    rows = json.loads(out.read_text()) if out.exists() else []
    done = {(row["path"], row["line"], row["old"], row["new"]) for row in rows}
    mutants = [m for m in mutants if (m.path, m.line(), m.old, m.new) not in done]

    with tempfile.TemporaryDirectory() as folder:
        copies: Queue[Path] = Queue()
        for number in range(options.jobs):
            copies.put(_copy_checkout(Path(folder) / str(number)))

        def run(mutant: Mutant) -> dict[str, object]:
            copy = copies.get()
            try:
                return _try(mutant, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(options.jobs) as pool:
            for row in pool.map(run, mutants):
                rows.append(row)
                print(
                    f"{row['result']:9} {row['seconds']:5.0f} s  {row['path']}:{row['line']}  {row['what']}", flush=True
                )
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(rows, indent=2) + "\n")
    survived = [row for row in rows if row["result"] == "survived"]
    print(f"{len(survived)} of {len(rows)} survived")
    return int(any(row["named"] for row in survived))


def _copy_checkout(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in CHECKED_OUT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


def _try(mutant: Mutant, copy: Path) -> dict[str, object]:
    """Change the copy, run the tests that should notice, and change it back."""
    source = (ROOT / mutant.path).read_text()
    environment = os.environ | {
        "CALCE_SHARED": "/nowhere",
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache/xla"),
    }
    start = time.monotonic()
    (copy / mutant.path).write_text(mutant.apply(source))
    try:
        noticed = ""
        for tests in (mutant.nearest_tests(), mutant.tests()):
            noticed = noticed or (_first_failure(tests, copy, environment) if tests else "")
    finally:
        (copy / mutant.path).write_text(source)
    return {
        "path": mutant.path,
        "line": mutant.line(),
        "old": mutant.old,
        "new": mutant.new,
        "what": mutant.what or f"{mutant.old.strip()} -> {mutant.new.strip() or 'nothing'}",
        "named": bool(mutant.what),
        "result": "noticed" if noticed else "survived",
        "by": noticed,
        "seconds": round(time.monotonic() - start, 1),
    }


def _first_failure(tests: list[str], copy: Path, environment: Mapping[str, str]) -> str:
    """Run tests; return the first that fails, or ""."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not release", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no end after {TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (
        failed[0].split(" - ")[0]
        if failed
        else done.stdout.strip().splitlines()[-1]
        if done.stdout.strip()
        else "error"
    )


if __name__ == "__main__":
    sys.exit(main())
