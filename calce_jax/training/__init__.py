"""Training: the loop, the compiled step, the optimizer, and what a run reads and writes."""
