"""The same programs under two Pythons, whose packages differ: `python -m benchmarks.stacks`.

Each Python has a process that holds the compiled programs and runs one when it is told to, in turns with the other's.
"ours" is the Python that runs this.
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
from calce_jax.models.lora import LoraConfig
from calce_jax.models.t5 import T5Config
from calce_jax.models.vit import VitConfig

LENGTH, ANSWER_LENGTH, BEAMS = 1024, 40, 5
# Results of two versions of XLA may be so far apart, relative to their size.
MAX_DIFFERENCE = 1e-3


def main() -> None:
    """Measure and write it down, or serve as one of the sides."""
    setting, args = parse_args(
        __doc__, other={"default": ".venv-python3.12/bin/python"}, serve={"action": "store_true"}
    )
    if args.serve:
        serve(setting)
        return
    sides = [PythonProcess(python, setting) for python in (sys.executable, args.other)]
    rows = [
        compare(
            setting,
            f"{name}, {sides[0].about}",
            lambda name=name: sides[0].run(name),
            lambda name=name: sides[1].run(name),
            other=sides[1].about,
            agreement=check_close,
        )
        for name in PROGRAMS
    ]
    for side in sides:
        side.close()
    report(setting, "stacks", rows)


class PythonProcess:
    """A Python, waiting to run programs."""

    def __init__(self, python: str, setting: BenchmarkSettings):
        command = [python, "-m", "benchmarks.stacks", "--serve", f"--threads={setting.threads}"]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read_line()

    def run(self, name: str) -> float:
        """Run a program once and return its result's size."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return float(self._read_line())

    def close(self) -> None:
        """Let it go."""
        self._process.communicate("")

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args}: ended with code {self._process.wait()}; see above")
        return line.strip()


def serve(setting: BenchmarkSettings) -> None:
    """Compile all programs, say who this is, and run those whose names come, until none does."""
    programs = {name: make(setting) for name, make in PROGRAMS.items()}
    for program in programs.values():
        program()
    print(f"Python {sys.version_info.major}.{sys.version_info.minor} with jax {jax.__version__}", flush=True)
    for line in sys.stdin:
        print(float(jnp.linalg.norm(programs[line.strip()]().astype(jnp.float32))), flush=True)


def check_close(ours: float, theirs: float) -> str:
    """Say how far two sizes of results are apart.

    Raises:
      ValueError: too far to be those of the same computation.
    """
    if not abs(ours - theirs) <= MAX_DIFFERENCE * abs(theirs):
        raise ValueError(f"results of size {ours} and {theirs}: nothing to compare")
    return f"sizes of results {abs(ours - theirs) / abs(theirs):.0e} apart"


def vision(setting: BenchmarkSettings) -> Callable[[], jax.Array]:
    """Four blocks of ViT-g over four frames."""
    model_config = minimal_config(vit=replace(VitConfig.eva_g(), depth=4))
    graph, params = nnx.split(make_jax_model(random_weights(model_config), setting).vit)
    frames = jnp.asarray(_noise(4, model_config.vit.image_size, model_config.vit.image_size, 3), setting.dtype)
    program = jax.jit(lambda params, frames: nnx.merge(graph, params)(frames))
    return lambda: program(params, frames)


def encoder(setting: BenchmarkSettings) -> Callable[[], jax.Array]:
    """T5's encoder."""
    model_config = minimal_config(t5=T5Config.flan_small())
    graph, params = nnx.split(make_jax_model(random_weights(model_config), setting).t5)
    prompt = jnp.asarray(_noise(1, LENGTH, model_config.t5.width), setting.dtype)
    program = jax.jit(lambda params, x: nnx.merge(graph, params).encode(x, jnp.ones(x.shape[:2], bool)))
    return lambda: program(params, prompt)


def training(setting: BenchmarkSettings) -> Callable[[], jax.Array]:
    """A training step of T5's adapters."""
    model_config = minimal_config(t5=T5Config.flan_small(), lora=LoraConfig())
    labels = np.random.default_rng(1).integers(2, model_config.t5.vocab, (1, ANSWER_LENGTH)).astype(np.int32)
    return our_step(random_weights(model_config), setting, _noise(1, LENGTH, model_config.t5.width), labels).run


def search(setting: BenchmarkSettings) -> Callable[[], jax.Array]:
    """Beam search of answers that all have the same length."""
    model_config = minimal_config(t5=T5Config.flan_small())
    graph, params = nnx.split(make_jax_model(random_weights(model_config), setting).t5)
    memory = jnp.asarray(_noise(1, LENGTH, model_config.t5.width), setting.dtype)

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
