"""The sections of docs/results.md; bench/results_page.py puts them together."""
