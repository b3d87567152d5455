"""The shapes world: a self-made dataset of videos of coloured shapes, with captions and queries."""
