"""What watches recald: rules for Prometheus, a dashboard for Grafana. Nothing in here runs in the daemon."""
