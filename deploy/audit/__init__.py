"""The audit log, a hash chain in an SQLite file; and the check of signatures beside files."""
