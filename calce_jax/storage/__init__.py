"""Atomic files, lock files, the disk cache, lists of failures, hashes and the code's revision."""
