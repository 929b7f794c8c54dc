"""What an operator can ask and order."""
