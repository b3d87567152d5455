"""Help and mistakes are answered at once: without jax, transformers or TFDS."""

import subprocess
import sys

import pytest

from calce_jax.commands.cli import COMMANDS

HEAVY = ("jax", "jaxlib", "flax", "transformers", "tensorflow_datasets", "orbax", "grain", "torch", "av")
PROBE = f"""
import sys
code = 0
try:
    from calce_jax.commands.cli import main
    main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print("loaded:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 0, "calce search holiday.mp4"),
        (["--help"], 0, "calce search holiday.mp4"),
        (["--version"], 0, "calce_jax "),
        (["serach"], 2, "calce serach: no such command; did you mean search?"),
        (["search", "--querry=a"], 2, "Unknown command line flag 'querry'. Did you mean: query ?"),
        (["train", "--config=qvhighlights,stage=3", "--workdir=x"], 2, "stage must be one of 1, 2, got '3'"),
        (["train", "--config=shapes", "--workdir=x", "--config.data.frame=8"], 2, "did you mean --config.data.frames"),
        (["train", "--config=shapes", "--workdir=x", "--nothing"], 2, "Unknown command line flag 'nothing'"),
        *(([name, "--help"], 0, "Flags:") for name in COMMANDS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_answers_without_heavy_imports(arguments, code, text):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


def test_the_package_imports_nothing_heavy():
    script = f"import calce_jax, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
