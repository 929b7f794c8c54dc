"""`recald report`: one page about one recalibration, for whoever is responsible for it."""
