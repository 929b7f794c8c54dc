"""The dashboard as a real Prometheus answers it; `python -m bench.dashboard` draws a drift and its repair."""
