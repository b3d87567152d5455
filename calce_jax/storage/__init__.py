"""Files that are written whole, a cache on disk, failures of long jobs, and what made a file."""
