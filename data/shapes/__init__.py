"""The shapes world: a self-made set of videos in which coloured shapes come and go and things are said."""
