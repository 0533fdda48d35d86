"""Frozen results, and the folder they are saved in."""
