"""Where a fit starts, what it minimises and how it descends."""
