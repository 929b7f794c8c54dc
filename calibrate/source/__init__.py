"""What is known of clean frames: training statistics, spectra, augmentation, commissioned measurements."""
