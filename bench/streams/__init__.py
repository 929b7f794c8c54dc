"""Hours of streams that are not i.i.d."""
