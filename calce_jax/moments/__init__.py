"""Windows, annotations and predictions: parsing, reading, writing, merging, scoring."""
