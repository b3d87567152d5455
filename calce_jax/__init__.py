"""Video moment retrieval in JAX."""

import os

# Of transformers only tokenizers are used; that torch is absent is no news to anybody.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
