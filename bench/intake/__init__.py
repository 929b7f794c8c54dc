"""Whether frames are received as fast as ZeroMQ delivers them."""
