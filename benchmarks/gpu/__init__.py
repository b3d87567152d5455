"""Every comparison of docs/benchmarks.md that needs a GPU, at full size, in one run of a few minutes."""
