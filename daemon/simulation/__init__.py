"""A camera in software, and the drifts that happen to cameras."""
