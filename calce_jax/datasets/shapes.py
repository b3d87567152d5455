"""The shapes world as a dataset."""

from calce_jax.datasets.builder import TableBuilder


class Shapes(TableBuilder):
    """The tables of the shapes world."""

    name = "shapes"
    dataset_description = (
        "Videos of 20 to 40 s, drawn by `python -m data.shapes.write`, in which coloured shapes come, move and go and "
        "things are said. Some queries need looking, some the captions, and some have several moments."
    )
    homepage = ""
    licence = "BSD-3-Clause, like the program that draws them."
    citation = ""
