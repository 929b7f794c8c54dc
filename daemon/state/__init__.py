"""What outlives the process: the audit log, pointers, what a restart must know, the lock."""
