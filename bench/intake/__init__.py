"""The bench of receiving frames; its entry is measure.py."""
