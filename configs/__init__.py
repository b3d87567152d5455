"""Runs, described."""
