"""Builds the dashboard: `python -m deploy.monitoring.dashboard.build`. Needs the extra `dev`."""
