"""Video moment retrieval in JAX: finds the moments of a video that a sentence describes, as [start, end] in seconds.

    model = calce_jax.load("runs/demo")
    moments = model.search("holiday.mp4", "a dog catches a ball")
    print(moments)

What it offers is imported at its first use: `import calce_jax` imports neither jax nor another library, and sets no
environment variable.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calce_jax.moments.metrics.evaluate import evaluate_files as score
    from calce_jax.search.library import Library
    from calce_jax.search.model import load
    from calce_jax.speech.captioning import transcribe_file as transcribe

__all__ = ["Library", "__version__", "load", "score", "transcribe"]
__version__ = "0.1.0"

_EXPORTS = {
    "Library": ("calce_jax.search.library", "Library"),
    "load": ("calce_jax.search.model", "load"),
    "score": ("calce_jax.moments.metrics.evaluate", "evaluate_files"),
    "transcribe": ("calce_jax.speech.captioning", "transcribe_file"),
}


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _EXPORTS[name]
    return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
