"""The world of the benchmark `make bench-shapes`: more kinds of queries than the demo's, short and long videos."""
