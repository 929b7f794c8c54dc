"""Backends compile and run networks: the protocol, one file for each backend, and the engine cache."""
