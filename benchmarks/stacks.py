"""The same programs in two Python environments with different packages: `python -m benchmarks.stacks`.

Each environment has a process with the compiled programs, and the processes run them alternately. "ours" is the
environment that runs this.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.models import make_jax_model, minimal_config, random_weights
from benchmarks.paired import BenchmarkSettings, compare, parse_args, report
from benchmarks.t5 import our_step
from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce_sizes import T5Config, VitConfig
from calce_jax.models.lora import LoraConfig

LENGTH, ANSWER_LENGTH, BEAMS = 1024, 40, 5
# Tolerated difference of the norms of results of two versions of XLA, relative.
MAX_DIFFERENCE = 1e-3


def main() -> None:
    """Run the benchmark and write its report, or, with --serve, be the process of one environment."""
    settings, args = parse_args(
        __doc__, other={"default": ".venv-python3.12/bin/python"}, serve={"action": "store_true"}
    )
    if args.serve:
        serve(settings)
        return
    sides = [PythonProcess(python, settings) for python in (sys.executable, args.other)]
    rows = [
        compare(
            settings,
            f"{name}, {sides[0].versions}",
            lambda name=name: sides[0].run(name),
            lambda name=name: sides[1].run(name),
            other=sides[1].versions,
            agreement=check_close,
        )
        for name in PROGRAMS
    ]
    for side in sides:
        side.close()
    report(settings, "stacks", rows)


class PythonProcess:
    """A process of a Python environment that runs programs by name.

    Attributes:
      versions: of Python and jax.
    """

    def __init__(self, python: str, settings: BenchmarkSettings):
        command = [python, "-m", "benchmarks.stacks", "--serve", f"--threads={settings.threads}"]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._read_line()

    def run(self, name: str) -> float:
        """Run a program once and return the norm of its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return float(self._read_line())

    def close(self) -> None:
        """End the process."""
        self._process.communicate("")

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args}: ended with code {self._process.wait()}; see above")
        return line.strip()


def serve(settings: BenchmarkSettings) -> None:
    """Compile all programs, print the versions, then run a program for each name on stdin and print its norm."""
    programs = {name: make(settings) for name, make in PROGRAMS.items()}
    for program in programs.values():
        program()
    print(f"Python {sys.version_info.major}.{sys.version_info.minor} with jax {jax.__version__}", flush=True)
    for line in sys.stdin:
        print(float(jnp.linalg.norm(programs[line.strip()]().astype(jnp.float32))), flush=True)


def check_close(ours: float, theirs: float) -> str:
    """Return the difference of the norms of two results, in words.

    Raises:
      ValueError: it exceeds `MAX_DIFFERENCE`: the computations are not the same.
    """
    if not abs(ours - theirs) <= MAX_DIFFERENCE * abs(theirs):
        raise ValueError(f"norms of results are {ours} and {theirs}: not the same computation")
    return f"norms of results differ by {abs(ours - theirs) / abs(theirs):.0e}"


def vision(settings: BenchmarkSettings) -> Callable[[], jax.Array]:
    """Return a run of four blocks of ViT-g on four frames."""
    model_config = minimal_config(vit=replace(VitConfig.eva_g(), depth=4))
    graph, params = nnx.split(make_jax_model(random_weights(model_config), settings).vit)
    frames = jnp.asarray(_noise(4, model_config.vit.image_size, model_config.vit.image_size, 3), settings.dtype)
    program = jax.jit(lambda params, frames: nnx.merge(graph, params)(frames))
    return lambda: program(params, frames)


def encoder(settings: BenchmarkSettings) -> Callable[[], jax.Array]:
    """Return a run of T5's encoder."""
    model_config = minimal_config(t5=T5Config.flan_small())
    graph, params = nnx.split(make_jax_model(random_weights(model_config), settings).t5)
    prompt = jnp.asarray(_noise(1, LENGTH, model_config.t5.width), settings.dtype)
    program = jax.jit(lambda params, x: nnx.merge(graph, params).encode(x, jnp.ones(x.shape[:2], bool)))
    return lambda: program(params, prompt)


def training(settings: BenchmarkSettings) -> Callable[[], jax.Array]:
    """Return a training step of T5's adapters."""
    model_config = minimal_config(t5=T5Config.flan_small(), lora=LoraConfig())
    labels = np.random.default_rng(1).integers(2, model_config.t5.vocab, (1, ANSWER_LENGTH)).astype(np.int32)
    return our_step(random_weights(model_config), settings, _noise(1, LENGTH, model_config.t5.width), labels).run


def search(settings: BenchmarkSettings) -> Callable[[], jax.Array]:
    """Return a beam search of answers of a fixed length."""
    model_config = minimal_config(t5=T5Config.flan_small())
    graph, params = nnx.split(make_jax_model(random_weights(model_config), settings).t5)
    memory = jnp.asarray(_noise(1, LENGTH, model_config.t5.width), settings.dtype)

    def run(params: nnx.State, memory: jax.Array) -> jax.Array:
        t5, mask = nnx.merge(graph, params), jnp.ones(memory.shape[:2], bool)
        return beam_search(
            t5, memory, mask, num_beams=BEAMS, max_length=ANSWER_LENGTH, min_length=ANSWER_LENGTH
        ).log_probability

    program = jax.jit(run)
    return lambda: program(params, memory)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


PROGRAMS: dict[str, Callable[[BenchmarkSettings], Callable[[], jax.Array]]] = {
    "4 blocks of ViT-g, 4 frames": vision,
    f"T5 encoder, size small, {LENGTH} tokens": encoder,
    f"T5 train step with LoRA, size small, {LENGTH} tokens": training,
    f"search of {BEAMS} beams, T5 size small, answers of {ANSWER_LENGTH}": search,
}

if __name__ == "__main__":
    main()
