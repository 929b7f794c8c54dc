"""The bench of the paper's tables; its entry is measure.py."""
