"""Windows, annotations and predictions: reading, writing, merging, ranking."""
