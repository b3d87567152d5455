"""PyTorch weights to this project's and back: one table per sub-model serves both directions."""
