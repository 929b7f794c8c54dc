"""`recald report`: one page about one recalibration, for whoever has to answer for it."""
