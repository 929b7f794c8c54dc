"""Measured claims: each file measures one, prints a table and writes JSON (keys: bench/README.md)."""
