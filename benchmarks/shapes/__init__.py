"""What each way of training and predicting is worth in the shapes world, see `benchmarks.shapes.__main__`."""
