"""Configs to copy and edit."""
