"""Benchmarks against alternative implementations; `make bench` runs those listed in `benchmarks.__main__`."""
