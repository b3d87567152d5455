"""Numbers that other libraries compute: recorded in small files, and computed anew by `make test-all`.

    CALCE_ORACLE=record python -m pytest tests/models tests/training tests/speech -k "transformers or torch"

writes the files anew, with the versions of torch and transformers of the environment.
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "data" / "oracles"
# Two versions of torch, or two processors, sum in another order.
SAME = 1e-5


def oracle(name: str, compute: Callable[[], Mapping[str, np.ndarray]], package: str = "torch") -> dict[str, np.ndarray]:
    """Return what `compute` returns: by default as it was recorded, so that nothing else is imported.

    With CALCE_ORACLE=live it is computed, and must equal the recording to 1e-5 of each array's largest number.

    Args:
      name: of the recording; a file of its own.
      compute: gives arrays by name; imports torch, which the test skips without.
      package: another one that it imports; where that is not installed, the recording is returned.
    """
    path, mode = FOLDER / f"{name}.npz", os.environ.get("CALCE_ORACLE", "recorded")
    if mode == "recorded" or (package != "torch" and find_spec(package) is None):
        return _read(path)
    pytest.importorskip("torch")
    computed = {key: np.asarray(array) for key, array in compute().items()}
    if mode == "record":
        FOLDER.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **computed)
    recorded = _read(path)
    assert recorded.keys() == computed.keys(), f"{path.name} has other arrays; record it anew"
    for key, array in computed.items():
        message = f"{path.name} {key} is out of date"
        if array.dtype.kind != "f":
            np.testing.assert_array_equal(array, recorded[key], err_msg=message)
            continue
        largest = float(np.abs(recorded[key][np.isfinite(recorded[key])]).max(initial=0))
        np.testing.assert_allclose(array, recorded[key], rtol=0, atol=SAME * largest, err_msg=message)
    return computed


def _read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
