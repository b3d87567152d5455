"""HTML pages of moments, and the timeline image for TensorBoard."""
