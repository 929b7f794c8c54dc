"""Kinds of values in the configuration: durations, rates, endpoints, ids of sensors."""
