"""The audit log: a hash chain in SQLite, and signatures beside files."""
