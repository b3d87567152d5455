"""Charades-STA: videos of household scenes, about 30 s long; one moment for each query."""

from calce_jax.datasets.builder import TableBuilder


class CharadesSta(TableBuilder):
    """TFDS tables of Charades-STA."""

    name = "charades_sta"
    dataset_description = (
        "Moments of the Charades videos (household scenes, about 30 s) that a sentence describes, one for each query. "
        "There is no validation split."
    )
    homepage = "https://github.com/jiyanggao/TALL"
    licence = "Charades: non-commercial use only, see https://prior.allenai.org/projects/charades."
    citation = """@inproceedings{gao2017tall,
  title={{TALL}: Temporal Activity Localization via Language Query},
  author={Gao, Jiyang and Sun, Chen and Yang, Zhenheng and Nevatia, Ram},
  booktitle={IEEE International Conference on Computer Vision},
  year={2017}
}"""
