"""A trained run applied to queries: one batch, a split, or single examples."""
