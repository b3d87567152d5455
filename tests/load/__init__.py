"""Long runs under load, apart from the tests: `make load`."""
