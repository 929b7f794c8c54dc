"""Images, networks, drifts, cameras and alternative methods that several benches share."""
