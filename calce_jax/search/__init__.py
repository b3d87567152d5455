"""Moments of sentences in any video, with both stages."""
