"""What a GPU makes of recald."""
