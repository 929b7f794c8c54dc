"""The worker process: fits and drift checks away from the frames, and the daemon's end of it."""
