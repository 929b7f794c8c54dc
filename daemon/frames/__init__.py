"""What is kept and watched of a sensor's frames."""
