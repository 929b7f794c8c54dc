"""`recald commission`: measure clean frames, and learn from labelled ones how to estimate accuracy."""
