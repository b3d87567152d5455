"""The commands; each parses flags and calls the library."""
