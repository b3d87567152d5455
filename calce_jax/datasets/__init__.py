"""Preparation of annotated videos as TFDS tables, validation of datasets, download of published files."""
