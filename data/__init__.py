"""Datasets: their builders, their annotations, the preparation of their videos."""
