"""Small tokenizers for the tiny model, trained by `make`, kept here as data."""
