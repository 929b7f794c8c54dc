"""The bench of senders that mean harm; its entry is measure.py."""
