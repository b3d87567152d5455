"""What a run leaves on disk, and weights from and to other programs."""
