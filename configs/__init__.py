"""Configs of runs, to copy and edit."""
