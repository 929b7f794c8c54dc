"""The bench of the drift alarm: how rare false alarms are, and how soon drifts are told; its entry is measure.py."""
