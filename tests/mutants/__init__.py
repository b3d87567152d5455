"""The code broken on purpose, one change at a time, to see whether the tests notice: `make mutants`."""
