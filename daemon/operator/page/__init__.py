"""The page on the device and the health paths: what `recald status` knows, for browsers and supervisors."""
