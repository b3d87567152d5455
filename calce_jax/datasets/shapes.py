"""The shapes world: self-made videos of coloured shapes, for the demo and the tests."""

from calce_jax.datasets.builder import TableBuilder


class Shapes(TableBuilder):
    """TFDS tables of the shapes world."""

    name = "shapes"
    dataset_description = (
        "Videos of 20 to 40 s, drawn by `python -m data.shapes.write`: coloured shapes appear, move and disappear, and "
        "captions are spoken. Queries are visual, about captions, or have several moments."
    )
    homepage = ""
    licence = "BSD-3-Clause."
    citation = ""
