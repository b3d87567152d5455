"""Video files: opening, decoding to frames, thumbnails and clips."""
