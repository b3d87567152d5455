"""Full-size programs compiled for machines that are not here, to see whether they fit."""
