"""Run every GPU measurement that docs/benchmarks.md asks for: `python -m benchmarks.gpu --out=runs/bench`.

Needs jax with CUDA, flax, optax, numpy, torch with CUDA, transformers and jaxtyping; reading videos, which needs more,
is skipped without it. Weights are random and made on the device. Each row is printed, and written to OUT/gpu.json, as
soon as it is measured; at the end all are printed as a table. The most wanted come first, so that a run that ends early
has them. `--rehearse` does the same at tiny sizes on a CPU.
"""

import argparse
import os
import time
from pathlib import Path

START = time.monotonic()
# Before jax is imported: torch uses the same GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import torch  # noqa: E402

from benchmarks.gpu.plan import Plan, Sizes  # noqa: E402
from benchmarks.gpu.sections import GRACE_SECONDS, RowLog, end_at, markdown_table, run_sections  # noqa: E402
from benchmarks.paired import BenchmarkSettings  # noqa: E402


def main(arguments: list[str] | None = None, start: float = START) -> int:
    """Run the sections and return the exit code: 1 if any failed.

    Args:
      arguments: of the command line.
      start: when the budget began, in seconds of `time.monotonic`.
    """
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of gpu.json (%(default)s)")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds in all (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of timed rounds (%(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU")
    only = "only this, and the ceilings; may be repeated"
    parser.add_argument("--only", action="append", default=[], metavar="SECTION", help=only)
    args = parser.parse_args(arguments)
    watchdog = end_at(start + args.budget - time.monotonic() + GRACE_SECONDS)
    device = "cpu" if args.rehearse else "gpu"
    jax.config.update("jax_platforms", "cpu" if args.rehearse else "cuda")
    threads = 1 if args.rehearse else os.cpu_count() or 1
    torch.set_num_threads(threads)
    if args.rehearse:
        jax.config.update("jax_optimization_level", "O0")  # compiles in less time
    else:
        # A section whose program takes its share of the time to compile has it the next time.
        jax.config.update("jax_compilation_cache_dir", str((args.out / "programs").absolute()))
        check_cards()
    settings = BenchmarkSettings(device, args.dtype, threads, args.rounds, args.out, peak=0.0)
    plan = Plan(settings, Sizes.rehearsal() if args.rehearse else Sizes.full())
    sections = plan.sections()
    names = [section.name for section in sections]
    if unknown := [name for name in args.only if name not in names]:
        parser.error(f"--only={unknown[0]}: there is no such section; choose of {', '.join(map(repr, names))}")
    log = RowLog(lambda: plan.settings)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}", flush=True)
    # Other rows are given as shares of the ceilings.
    chosen = [section for section in sections if not args.only or section.name in ("ceilings", *args.only)]
    try:
        run_sections(chosen, log, start + args.budget)
    except KeyboardInterrupt:
        print(f"stopped; {args.out / 'gpu.json'} has the rows above, and --only measures others", flush=True)
        return 130
    watchdog.cancel()
    print("\n" + markdown_table(log.rows))
    print(f"\n{time.monotonic() - start:.0f} s; {args.out / 'gpu.json'}")
    return int(any(row["status"] == "failed" for row in log.rows))


def check_cards() -> None:
    """Check that jax and torch can compute on a card.

    Raises:
      SystemExit: one of them cannot, with what to install.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter from a jaxlib that has no part for CUDA
        raise SystemExit(
            f"jax finds no CUDA device ({' '.join(str(error).split()) or 'its CUDA part is missing':.200}); install "
            "'.[cuda12]' and check `nvidia-smi`; --rehearse computes on a CPU"
        ) from None
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA device; install its wheel for CUDA; --rehearse computes on a CPU")


if __name__ == "__main__":
    raise SystemExit(main())
