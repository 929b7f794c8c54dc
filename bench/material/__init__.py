"""What several benches share: images, networks, drifts, cameras, alternatives."""
