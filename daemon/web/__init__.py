"""The port for browsers and Prometheus: connections within bounds, TLS, paths, headers. It knows nothing of cameras."""
