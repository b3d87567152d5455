"""The `calce` command: the scripts of `launch/`, by name."""

import importlib
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Command:
    """One script: what it does, and an example that can be typed."""

    does: str
    example: str


COMMANDS = {
    "search": Command(
        "find moments in videos, and write a page that plays them",
        'calce search holiday.mp4 --query "a dog catches a ball" --out found',
    ),
    "web": Command("the same in a browser", "calce web --checkpoint runs/demo"),
    "fetch": Command("bring weights, annotations and videos", "calce fetch --what=bert --out=downloads/bert"),
    "prepare": Command(
        "decode the videos of a dataset once, and write the tables that training reads",
        "calce prepare --dataset=shapes --videos=videos --srts=srts --annotations=train.jsonl --out=prepared",
    ),
    "caption": Command(
        "write down what is said in videos, as .srt", "calce caption --videos=videos --out=srts --model=tiny.en"
    ),
    "cache_features": Command(
        "see every video once, and keep what the frozen vision tower gives for training",
        "calce cache_features --config=configs/calce.py:qvh,stage=2 --out=data/features/qvh",
    ),
    "train": Command("train one stage", "calce train --config=configs/calce.py:qvh,stage=1 --workdir=runs/qvh_stage1"),
    "infer": Command(
        "ask every query of a split",
        "calce infer --workdir=runs/qvh_stage1 --split=val --out=runs/qvh_stage1/val.jsonl",
    ),
    "merge": Command(
        "put stage 1's windows into stage 2's data",
        "calce merge --predictions=val.jsonl --annotations=val.json --out=merged_val.jsonl",
    ),
    "evaluate": Command(
        "score predictions", "calce evaluate --predictions=val.jsonl --annotations=val.json --out=scores.json"
    ),
    "convert": Command(
        "turn published weights into ours, and back",
        "calce convert --source=hf:blip2,bert:bert --target=base:full.safetensors",
    ),
}


def main(argv: list[str] | None = None) -> None:
    """Run `calce NAME ...`; without a name, or with `--help`, say what there is."""
    given = sys.argv[1:] if argv is None else argv
    name, rest = (given[0], given[1:]) if given else ("", [])
    if name in ("", "-h", "--help", "help"):
        print(overview())
        return
    if name not in COMMANDS:
        raise SystemExit(f"calce {name}: no such command; there are {', '.join(COMMANDS)}")
    # Only now, since the scripts import JAX.
    script = importlib.import_module(f"launch.{name}")
    if set(rest) & {"-h", "--help"}:
        print(help_of(name, script))
        return
    run(script, name, rest)


def overview() -> str:
    """Return what there is, an example first."""
    width = max(map(len, COMMANDS)) + 2
    rows = "\n".join(f"  {name:<{width}}{command.does}" for name, command in COMMANDS.items())
    return f"Example:\n  {COMMANDS['search'].example}\n\n{rows}\n\n`calce NAME --help` shows an example and all flags."


def help_of(name: str, script: Any) -> str:
    """Return an example, what the script says of itself, and its flags."""
    flags = importlib.import_module("absl.flags").FLAGS
    listed = flags.module_help(script).split("\n", 1)[-1]
    return f"Example:\n  {COMMANDS[name].example}\n\n{(script.__doc__ or '').strip()}\n\nFlags:\n{listed.rstrip()}"


def run(script: Any, name: str, arguments: list[str]) -> None:
    """Parse the flags as the script itself would, and run it."""
    app, logging = (importlib.import_module(f"absl.{module}") for module in ("app", "logging"))
    # The libraries tell of every file; --verbosity=0 shows that.
    logging.set_verbosity(logging.WARNING)
    parser = {"flags_parser": script.parse} if hasattr(script, "parse") else {}
    app.run(script.main, argv=[f"calce {name}", *arguments], **parser)


if __name__ == "__main__":
    main()
