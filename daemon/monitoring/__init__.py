"""What Prometheus needs beyond what is counted as it happens: series from the start, and values of each second."""
