"""Metadata lives in pyproject.toml; this file lets older installers find it."""

from setuptools import setup

setup()
