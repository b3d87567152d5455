"""QVHighlights: YouTube videos of up to 150 s; one or several moments for each query."""

from calce_jax.datasets.builder import TableBuilder


class QVHighlights(TableBuilder):
    """TFDS tables of QVHighlights."""

    name = "qvhighlights"
    dataset_description = (
        "Moments of YouTube videos (vlogs and news, up to 150 s) that a sentence describes, one or several for each "
        "query. Captions are those of the .srt files given to `calce prepare`."
    )
    homepage = "https://github.com/jayleicn/moment_detr"
    licence = "Annotations: CC BY-NC-SA 4.0. Videos: their owners'."
    citation = """@inproceedings{lei2021qvhighlights,
  title={{QVHighlights}: Detecting Moments and Highlights in Videos via Natural Language Queries},
  author={Lei, Jie and Berg, Tamara L. and Bansal, Mohit},
  booktitle={Advances in Neural Information Processing Systems},
  year={2021}
}"""
