"""Pretraining of the tiny base model, see `data.shapes.pretrain.pretrain`."""
