"""The way of a frame: received, checked, decoded, served, published; docs/reading-order.md lists its files."""
