"""Compile the full-size programs ahead of time for other machines, to check that they fit into memory."""
