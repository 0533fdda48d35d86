"""Find, name, load and understand a decoder."""
