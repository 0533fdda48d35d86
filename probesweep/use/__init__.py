"""A trained probe at work."""
