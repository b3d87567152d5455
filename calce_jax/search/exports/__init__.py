"""Formats of other programs in which moments are written."""
