"""`recald check`: one verdict on a camera, of a live sensor or of pictures."""
