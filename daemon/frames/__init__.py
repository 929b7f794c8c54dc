"""The frames of a sensor: which are kept, whether they still arrive, and how long they take."""
