"""ActivityNet Captions: YouTube videos of activities, about two minutes long; one moment for each query."""

from calce_jax.datasets.builder import TableBuilder


class ActivityNet(TableBuilder):
    """TFDS tables of ActivityNet Captions."""

    name = "activitynet"
    dataset_description = (
        "Moments of YouTube videos of human activities (two minutes on average) that a sentence describes, one for "
        "each query. Sentences and moments are those of the captions."
    )
    homepage = "https://cs.stanford.edu/people/ranjaykrishna/densevid/"
    licence = "Annotations: see the homepage. Videos: their owners'."
    citation = """@inproceedings{krishna2017dense,
  title={Dense-Captioning Events in Videos},
  author={Krishna, Ranjay and Hata, Kenji and Ren, Frederic and Fei-Fei, Li and Niebles, Juan Carlos},
  booktitle={IEEE International Conference on Computer Vision},
  year={2017}
}"""
