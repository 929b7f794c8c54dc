"""The bench on an NVIDIA GPU; its entry is measure.py."""
