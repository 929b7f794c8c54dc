"""A sensor's own healthy frames: what its content does to the statistics, and what only a change of the camera does."""
