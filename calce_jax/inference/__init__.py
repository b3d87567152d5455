"""Inference with a trained model: batches, splits, single examples, and feature extraction."""
