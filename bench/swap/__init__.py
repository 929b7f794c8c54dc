"""What a swap costs."""
