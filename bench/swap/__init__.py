"""The bench of swaps; its entry is measure.py."""
