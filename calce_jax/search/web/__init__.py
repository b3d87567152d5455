"""The search in a browser, for one person or a few: the extra `[web]`."""
