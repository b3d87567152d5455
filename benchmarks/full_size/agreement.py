"""The comparison of both sides' arrays."""

import numpy as np

from benchmarks.full_size.material import BFLOAT16_FRAMES, load_arrays
from benchmarks.full_size.steps import Check
from benchmarks.full_size.workspace import Workspace

# Of the largest number, in float32: sums in another order, over 39 and 48 blocks.
CLOSE = 1e-4
# In bfloat16: our distance from float32 over theirs.
NO_FURTHER = 1.2


def compare_sides(workspace: Workspace) -> list[Check]:
    """Return the checks of both dtypes."""
    return [*_float32_checks(workspace), *_bfloat16_checks(workspace)]


def _float32_checks(workspace: Workspace) -> list[Check]:
    checks = []
    for part, names in (("vision", ("tokens", "queries", "embeddings")), ("gradients", ("states", "loss"))):
        ours, theirs = _sides(workspace, part, "float32")
        labels = {"tokens": "ViT tokens", "queries": "Q-Former queries", "embeddings": "prompt embeddings"}
        labels |= {"states": "encoder states", "loss": "loss"}
        checks += [
            Check(
                f"float32, {labels[name]}: difference of the largest number",
                _difference(ours[name], theirs[name]),
                CLOSE,
            )
            for name in names
        ]
        if part == "gradients":
            adapters = _adapters(theirs)
            if set(adapters) != set(_adapters(ours)):
                raise ValueError("the sides have gradients of different adapters")
            checks.append(Check("adapters whose gradients are compared", len(adapters)))
            worst = max(_difference(ours[name], theirs[name]) for name in adapters)
            checks.append(
                Check("float32, gradient of the worst adapter: difference of its largest number", worst, CLOSE)
            )
    ours, theirs = _sides(workspace, "beams", "float32")
    different = int((ours["tokens"] != theirs["tokens"]).sum())
    checks.append(Check(f"float32, tokens of {len(ours['tokens'])} beams that differ", different, 0))
    deviation = float(np.abs(ours["log_probability"] - theirs["log_probability"]).max())
    checks.append(Check("float32, log-probability of an answer: difference", deviation, 1e-3))
    checks.append(Check("prompt tokens", len(load_arrays(workspace, "ours_vision_float32")["embeddings"])))
    return checks


def _bfloat16_checks(workspace: Workspace) -> list[Check]:
    """Compare the distances from our float32, root mean square over root mean square."""
    checks = []
    for part in ("vision", "gradients"):
        exact = load_arrays(workspace, f"ours_{part}_float32")
        sides = _sides(workspace, part, "bfloat16")
        names = ("tokens", "queries") if part == "vision" else ("states", "loss")
        for name in names:
            whole = exact[name][:BFLOAT16_FRAMES] if part == "vision" else exact[name]
            ours, theirs = (_distance(side[name], whole) for side in sides)
            checks.append(_no_further(f"bfloat16, {name}", ours, theirs))
        if part == "gradients":
            distances = np.array([[_distance(side[name], exact[name]) for name in _adapters(exact)] for side in sides])
            ours, theirs = np.median(distances, axis=1)
            checks.append(_no_further("bfloat16, gradients, median adapter", ours, theirs))
            ratio = float(np.median(distances[0] / distances[1]))
            checks.append(Check("bfloat16, gradients: median over the adapters of the same ratio", ratio, NO_FURTHER))
    ours, theirs = _sides(workspace, "beams", "bfloat16")
    exact_tokens = load_arrays(workspace, "ours_beams_float32")["tokens"]
    for side, found in (("ours", ours), ("theirs", theirs)):
        equal = float((found["tokens"] == exact_tokens).mean())
        checks.append(Check(f"bfloat16, share of beam tokens equal to float32's, {side}", equal))
    return checks


def _no_further(what: str, ours: float, theirs: float) -> Check:
    return Check(
        f"{what}: our distance from float32 ({ours:.2e}) over theirs ({theirs:.2e})", float(ours / theirs), NO_FURTHER
    )


def _sides(workspace: Workspace, part: str, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return load_arrays(workspace, f"ours_{part}_{dtype}"), load_arrays(workspace, f"theirs_{part}_{dtype}")


def _adapters(arrays: dict[str, np.ndarray]) -> list[str]:
    return sorted(name for name in arrays if name.startswith("gradient:"))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to the largest number."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def _distance(array: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(array - exact) / np.linalg.norm(exact))
