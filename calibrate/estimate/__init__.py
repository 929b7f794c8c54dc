"""Estimate how often a classifier is right, from its outputs and features, for frames whose classes nobody knows."""
