"""The making of the small tokenizers of the tiny model; they are in calce_jax/assets/tiny."""
