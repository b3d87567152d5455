"""Video moment retrieval in JAX."""
