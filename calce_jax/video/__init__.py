"""Frames of video files, and clips cut from them."""
