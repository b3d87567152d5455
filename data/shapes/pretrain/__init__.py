"""How the tiny base model is taught: see `data.shapes.pretrain.pretrain`."""
