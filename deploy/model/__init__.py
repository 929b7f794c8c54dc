"""The frozen model: card, document, file, program, export, precision, and the measurement of clean frames."""
