"""The frozen model as the daemon serves it."""
