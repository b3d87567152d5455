"""Search in videos of any length: sentences in, ranked moments, a page and clips out."""
