"""Measurements of frames and homogenizers: drift, accuracy estimates, label shift, extent."""
