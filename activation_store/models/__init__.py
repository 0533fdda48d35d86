"""Find, identify, load and inspect a decoder."""
