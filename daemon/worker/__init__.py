"""The worker process, which fits and checks drift apart from the frames, and the daemon's connection to it."""
