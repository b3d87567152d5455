"""Conversion of weights from and to PyTorch; one table of names per sub-model serves both directions."""
