"""The live demo: a camera drifts, the daemon notices, refits and recovers."""
