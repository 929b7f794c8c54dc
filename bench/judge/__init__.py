"""How often bad homogenizers come to serve, and good ones do not."""
