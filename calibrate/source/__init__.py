"""Clean frames: their statistics, spectra and augmentation, read from a network or measured."""
