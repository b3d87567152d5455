"""Which frames of a video are seen in full, which compressed and which not at all; both stages return one `Plan`."""
