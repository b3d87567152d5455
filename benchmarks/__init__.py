"""What takes how long beside what a user would otherwise run; `make bench` runs those of `benchmarks.__main__`."""
