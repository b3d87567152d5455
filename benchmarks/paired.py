"""Paired timing of two implementations.

Ours and theirs run alternately, in one process, on the same cores, in an order that changes every round, so that other
load on the machine affects both. Both run before the first timed round, and compile time is reported separately. A
ratio is the median over the rounds of their time divided by ours: above 1 we are faster.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from benchmarks.aot.flops import count_flops
from calce_jax.distributed.compiler_options import options_for
from calce_jax.storage.atomic_files import write_atomic

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "peft", "simplejpeg", "pillow", "av", "decord")
BenchmarkFn = Callable[[], Any]


@dataclass(frozen=True)
class BenchmarkSettings:
    """Settings of both sides.

    Fields:
      device: "gpu" is an NVIDIA GPU.
      dtype: of the computation.
      threads: number of cores.
      rounds: number of timed rounds.
      out: folder of the results.
      peak: of the device, TFLOP/s in `dtype`; 0 if unknown.
      bandwidth: of the device's memory, GB/s; 0 if unknown.
    """

    device: Literal["cpu", "gpu"]
    dtype: Literal["float32", "bfloat16"]
    threads: int
    rounds: int
    out: Path
    peak: float
    bandwidth: float = 0.0

    @property
    def torch_device(self) -> str:
        """Name of the device in torch."""
        return "cuda" if self.device == "gpu" else "cpu"

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """Those with which the commands compile the programs of a model."""
        return options_for(self.device, 1, self.dtype)


@dataclass(frozen=True)
class ComparisonRow:
    """Result of a comparison.

    Fields:
      name: of the work.
      ours, theirs: median seconds.
      ratio: median over the rounds of theirs / ours; `lowest` and `highest` are the extremes.
      compile_s: compile time of ours, seconds.
      other: name of the other implementation.
      agreement: difference of the two results, in words.
      tflop: 10^12 floating-point operations of ours, if counted.
      notes: further numbers.
    """

    name: str
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float
    compile_s: float
    other: str
    agreement: str
    tflop: float = 0.0
    notes: dict[str, float] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """Return the row as a line of text."""
        notes = "".join(f"; {name} {value:.4g}" for name, value in self.notes.items())
        return (
            f"{self.name}: {1e3 * self.ours:.1f} ms, {self.other} {1e3 * self.theirs:.1f} ms: {self.ratio:.2f}x "
            f"({self.lowest:.2f} to {self.highest:.2f}); compiled in {self.compile_s:.1f} s; {self.agreement}{notes}"
        )


def parse_args(
    description: str | None, *, threads: int = os.cpu_count() or 1, **extra_options: dict[str, Any]
) -> tuple[BenchmarkSettings, argparse.Namespace]:
    """Parse the command line, restrict the process to `--threads` cores, and select the device.

    Args:
      description: of the benchmark.
      threads: default of `--threads`.
      extra_options: further options, by name: keyword arguments of `argparse.ArgumentParser.add_argument`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="by default float32 on cpu, bfloat16 on gpu")
    parser.add_argument("--threads", type=int, default=threads, help="number of cores")
    parser.add_argument("--rounds", type=int, default=7, help="number of timed rounds")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder of the JSON report")
    parser.add_argument("--peak", type=float, default=0.0, help="peak TFLOP/s of the device, to report a share of it")
    for name, options in extra_options.items():
        parser.add_argument(f"--{name}", **options)
    args = parser.parse_args()
    dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    # XLA starts a thread for each core that it may use; torch gets the number by `set_num_threads`.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch uses the same GPU
    jax.config.update("jax_platforms", "cuda" if args.device == "gpu" else "cpu")
    settings = BenchmarkSettings(args.device, dtype, args.threads, args.rounds, args.out, args.peak)
    return settings, args


def compile_program(function: Callable[..., Any], *inputs: Any, **options: Any) -> tuple[Any, float]:
    """Return a compiled program for these inputs, and the seconds of tracing and compiling."""
    start = time.perf_counter()
    program = jax.jit(function, **options).lower(*inputs).compile()
    return program, time.perf_counter() - start


class Program(NamedTuple):
    """A compiled program.

    Fields:
      run: the program.
      compile_s: seconds of tracing and compiling.
      tflop: 10^12 floating-point operations of its matrix products.
    """

    run: Any
    compile_s: float
    tflop: float


def compile_counted(
    function: Any, *inputs: Any, while_trip_count: int = 1, options: dict[str, str] | None = None
) -> Program:
    """Compile a function for these inputs.

    Args:
      function: jitted or not.
      inputs: arrays.
      while_trip_count: see `benchmarks.aot.flops`.
      options: of the compiler.
    """
    start = time.perf_counter()
    traced = (function if hasattr(function, "trace") else jax.jit(function)).trace(*inputs)
    program = traced.lower().compile(dict(options or {}))
    seconds = time.perf_counter() - start
    return Program(program, seconds, count_flops(traced.jaxpr, while_trip_count) / 1e12)


def compare(
    settings: BenchmarkSettings,
    name: str,
    ours: BenchmarkFn,
    theirs: BenchmarkFn,
    *,
    other: str,
    agreement: Callable[[Any, Any], str],
    compile_s: float = 0.0,
    program: Any = None,
    tflop: float = 0.0,
    gigabytes: float = 0.0,
    frames: int = 0,
    their_bytes: int | None = None,
    notes: dict[str, float] | None = None,
) -> ComparisonRow:
    """Time two implementations alternately, and print the row.

    Args:
      settings: rounds and device.
      name, other, compile_s, tflop, notes: see `ComparisonRow`.
      ours, theirs: run once and return the result, which may still be computed asynchronously.
      agreement: describes the difference of the two results; raises if they are too different.
      program: ours, compiled, to report its memory; that of torch is reported on a GPU only.
      gigabytes: 10^9 bytes that the work must read and write, to report them per second.
      frames: number of frames of the work, to report frames per second.
      their_bytes: of what torch holds for this work, such as weights. By default all that it holds counts, which is too
        much if the process holds other models.
    """
    sides = {"ours": ours, "theirs": theirs}
    # Two untimed runs: the first may allocate buffers that only the second fills.
    results = {side: _time_once(run, settings)[1] for side, run in sides.items()}
    agreement_text = agreement(results["ours"], results["theirs"])
    del results
    notes = dict(notes or {})
    if program is not None:
        notes["GiB"] = program_bytes(program) / 2**30
    for run in sides.values():
        _time_once(run, settings)
    if program is not None and settings.device == "gpu":
        notes["their GiB"] = _peak_torch_bytes(theirs, settings, their_bytes) / 2**30
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(settings.rounds):
        for side in list(sides) if number % 2 else reversed(list(sides)):
            times[side].append(_time_once(sides[side], settings)[0])
    ratios = [theirs / ours for ours, theirs in zip(times["ours"], times["theirs"], strict=True)]
    seconds, other_seconds = (statistics.median(times[side]) for side in sides)
    if tflop:
        notes |= {"TFLOP/s": tflop / seconds, "their TFLOP/s": tflop / other_seconds}
        if settings.peak:
            notes["share of peak"] = tflop / seconds / settings.peak
    if gigabytes:
        notes |= {"GB/s": gigabytes / seconds, "their GB/s": gigabytes / other_seconds}
        if settings.bandwidth:
            notes["share of bandwidth"] = gigabytes / seconds / settings.bandwidth
    if frames:
        notes |= {"frames a second": frames / seconds, "their frames a second": frames / other_seconds}
    row = ComparisonRow(
        name=name,
        ours=seconds,
        theirs=other_seconds,
        ratio=statistics.median(ratios),
        lowest=min(ratios),
        highest=max(ratios),
        compile_s=compile_s,
        other=other,
        agreement=agreement_text,
        tflop=tflop,
        notes=notes,
    )
    print(row.line(), flush=True)
    return row


def check_close(ours: Any, theirs: Any, *, max_difference: float) -> str:
    """Return the maximal difference of a jax and a torch array, relative to the largest entry, in words.

    Raises:
      ValueError: it exceeds `max_difference`: the computations are not the same.
    """
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs.float().cpu())
    distance = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    if not distance <= max_difference:
        raise ValueError(f"results differ by {distance:.1e}, more than {max_difference:.1e}: not the same computation")
    return f"results differ by {distance:.0e}"


def report(settings: BenchmarkSettings, subject: str, rows: Sequence[ComparisonRow]) -> None:
    """Write the rows and the machine, versions and settings to `out`/`subject`.json, and print where."""
    content = write_rows(settings, subject, [dataclasses.asdict(row) for row in rows])
    print(f"load {content['load']}, {content['machine']}, {content['device']}; {settings.out / subject}.json")


def write_rows(settings: BenchmarkSettings, subject: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write and return what `report` writes, for rows as JSON values."""
    content = {
        "subject": subject,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{processor_name()}, {settings.threads} of {os.cpu_count()} cores",
        "device": jax.devices()[0].device_kind,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: package_version for name in PACKAGES if (package_version := _version(name))},
        "setting": {**dataclasses.asdict(settings), "out": str(settings.out)},
        "rows": list(rows),
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.out / f"{subject}.json", json.dumps(content, indent=1) + "\n")
    return content


def program_bytes(program: Any) -> int:
    """Return the bytes of a compiled program: arguments, outputs that do not alias them, and temporaries."""
    memory = program.memory_analysis()
    argument_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return argument_bytes + memory.temp_size_in_bytes


def _peak_torch_bytes(run: BenchmarkFn, settings: BenchmarkSettings, held: int | None) -> int:
    """Return the peak bytes of torch on the GPU during a run, weights included; see `their_bytes` of `compare`."""
    import torch  # noqa: PLC0415

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    _time_once(run, settings)
    peak = torch.cuda.max_memory_allocated()
    return peak if held is None else peak - before + held


def _time_once(run: BenchmarkFn, settings: BenchmarkSettings) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    if settings.device == "gpu":
        import torch  # noqa: PLC0415

        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def processor_name() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
