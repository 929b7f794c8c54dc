"""The way of a recalibration in the daemon's own process; docs/reading-order.md lists its files in their order."""
