"""The bench of the judge; its entry is measure.py."""
