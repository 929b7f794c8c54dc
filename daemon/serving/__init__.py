"""The way of a frame: received, checked, decoded, served, published."""
