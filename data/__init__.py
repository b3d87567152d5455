"""Data made by this project: the shapes videos, the small tokenizers, and the tiny base model."""
