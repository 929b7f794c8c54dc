"""A simulated camera and its drifts."""
