"""The state directory: its lock, the writers for audit log and pointers, and what a restart reads."""
