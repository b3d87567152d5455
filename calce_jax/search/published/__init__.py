"""Models by name: where they are kept, how they are fetched and converted, and how a trained one is published."""
