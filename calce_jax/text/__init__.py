"""Text of a batch on the host: captions, prompts, labels and tokenizers."""
