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

from benchmarks.models import in_jax, random_weights, sizes_of
from benchmarks.paired import Setting, arguments, compare, report
from benchmarks.t5 import our_step
from calce_jax.models.beam_search import beam_search
from calce_jax.models.lora import LoraConfig
from calce_jax.models.t5 import T5Config
from calce_jax.models.vit import VitConfig

LENGTH, ANSWER, BEAMS = 1024, 40, 5
# Results of two versions of XLA may be so far apart, relative to their size.
MOST = 1e-3


def main() -> None:
    """Measure and write it down, or serve as one of the sides."""
    setting, given = arguments(
        __doc__, other={"default": ".venv-python3.12/bin/python"}, serve={"action": "store_true"}
    )
    if given.serve:
        serve(setting)
        return
    sides = [Side(python, setting) for python in (sys.executable, given.other)]
    rows = [
        compare(
            setting,
            f"{name}, {sides[0].about}",
            lambda name=name: sides[0].run(name),
            lambda name=name: sides[1].run(name),
            other=sides[1].about,
            agreement=apart,
        )
        for name in PROGRAMS
    ]
    for side in sides:
        side.end()
    report(setting, "stacks", rows)


class Side:
    """A Python, waiting to run programs."""

    def __init__(self, python: str, setting: Setting):
        command = [python, "-m", "benchmarks.stacks", "--serve", f"--threads={setting.threads}"]
        root = Path(__file__).parents[1]
        self._process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._heard()

    def run(self, name: str) -> float:
        """Run a program once and return its result's size."""
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return float(self._heard())

    def end(self) -> None:
        """Let it go."""
        self._process.communicate("")

    def _heard(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args}: ended with code {self._process.wait()}; see above")
        return line.strip()


def serve(setting: Setting) -> None:
    """Compile all programs, say who this is, and run those whose names come, until none does."""
    programs = {name: make(setting) for name, make in PROGRAMS.items()}
    for program in programs.values():
        program()
    print(f"Python {sys.version_info.major}.{sys.version_info.minor} with jax {jax.__version__}", flush=True)
    for line in sys.stdin:
        print(float(jnp.linalg.norm(programs[line.strip()]().astype(jnp.float32))), flush=True)


def apart(ours: float, theirs: float) -> str:
    """Say how far two sizes of results are apart.

    Raises:
      ValueError: too far to be those of the same computation.
    """
    if not abs(ours - theirs) <= MOST * abs(theirs):
        raise ValueError(f"results of size {ours} and {theirs}: nothing to compare")
    return f"sizes of results {abs(ours - theirs) / abs(theirs):.0e} apart"


def vision(setting: Setting) -> Callable[[], jax.Array]:
    """Four blocks of ViT-g over four frames."""
    sizes = sizes_of(vit=replace(VitConfig.eva_g(), depth=4))
    graph, params = nnx.split(in_jax(random_weights(sizes), setting).vit)
    frames = jnp.asarray(_noise(4, sizes.vit.image_size, sizes.vit.image_size, 3), setting.dtype)
    program = jax.jit(lambda params, frames: nnx.merge(graph, params)(frames))
    return lambda: program(params, frames)


def encoder(setting: Setting) -> Callable[[], jax.Array]:
    """T5's encoder."""
    sizes = sizes_of(t5=T5Config.flan_small())
    graph, params = nnx.split(in_jax(random_weights(sizes), setting).t5)
    prompt = jnp.asarray(_noise(1, LENGTH, sizes.t5.width), setting.dtype)
    program = jax.jit(lambda params, x: nnx.merge(graph, params).encode(x, jnp.ones(x.shape[:2], bool)))
    return lambda: program(params, prompt)


def training(setting: Setting) -> Callable[[], jax.Array]:
    """A training step of T5's adapters."""
    sizes = sizes_of(t5=T5Config.flan_small(), lora=LoraConfig())
    labels = np.random.default_rng(1).integers(2, sizes.t5.vocab, (1, ANSWER)).astype(np.int32)
    return our_step(random_weights(sizes), setting, _noise(1, LENGTH, sizes.t5.width), labels).run


def search(setting: Setting) -> Callable[[], jax.Array]:
    """Beam search of answers that all have the same length."""
    sizes = sizes_of(t5=T5Config.flan_small())
    graph, params = nnx.split(in_jax(random_weights(sizes), setting).t5)
    memory = jnp.asarray(_noise(1, LENGTH, sizes.t5.width), setting.dtype)

    def run(params: nnx.State, memory: jax.Array) -> jax.Array:
        t5, mask = nnx.merge(graph, params), jnp.ones(memory.shape[:2], bool)
        return beam_search(t5, memory, mask, beams=BEAMS, length=ANSWER, shortest=ANSWER).log_probability

    program = jax.jit(run)
    return lambda: program(params, memory)


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


PROGRAMS: dict[str, Callable[[Setting], Callable[[], jax.Array]]] = {
    "4 blocks of ViT-g, 4 frames": vision,
    f"T5 encoder, size small, {LENGTH} tokens": encoder,
    f"T5 train step with LoRA, size small, {LENGTH} tokens": training,
    f"search of {BEAMS} beams, T5 size small, answers of {ANSWER}": search,
}

if __name__ == "__main__":
    main()
