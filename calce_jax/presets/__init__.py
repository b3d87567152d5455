"""Presets: the configs of all runs of the library, as frozen dataclasses."""
