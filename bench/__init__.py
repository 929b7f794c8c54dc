"""Measured claims: each bench measures one, prints tables and writes JSON (bench/README.md)."""
