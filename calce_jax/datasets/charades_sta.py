"""Charades-STA: videos of people at home, about 30 seconds long, each query with one moment."""

from calce_jax.datasets.builder import TableBuilder


class CharadesSta(TableBuilder):
    """The tables of Charades-STA."""

    name = "charades_sta"
    dataset_description = (
        "Moments of the Charades videos (people acting out household scenes, about 30 s) that a sentence describes, "
        "one for each. There is no validation split."
    )
    homepage = "https://github.com/jiyanggao/TALL"
    licence = "Charades: non-commercial use only, see https://prior.allenai.org/projects/charades."
    citation = """@inproceedings{gao2017tall,
  title={{TALL}: Temporal Activity Localization via Language Query},
  author={Gao, Jiyang and Sun, Chen and Yang, Zhenheng and Nevatia, Ram},
  booktitle={IEEE International Conference on Computer Vision},
  year={2017}
}"""
