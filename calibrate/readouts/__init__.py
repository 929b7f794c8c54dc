"""Read-outs: what happened to a camera, in physical units, from healthy and recent pictures of other content."""
