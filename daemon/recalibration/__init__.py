"""The way of a recalibration, in the daemon's own process."""
