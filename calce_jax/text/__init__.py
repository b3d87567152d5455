"""From sentences and captions to token ids."""
