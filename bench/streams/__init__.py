"""The bench of long streams that are not i.i.d.; its entry is measure.py."""
