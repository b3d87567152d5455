"""The shapes world: a self-made dataset of videos of coloured shapes, with captions and queries."""

VIDEOS_PER_SPLIT = {"train": 160, "val": 24, "test": 60}  # of the demo
