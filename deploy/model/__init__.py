"""The frozen model: card, file, program, export, precision, commissioned statistics."""
