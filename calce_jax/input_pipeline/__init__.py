"""The input pipeline: from the tables of a prepared folder to batches."""
