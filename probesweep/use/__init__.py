"""Using a trained probe."""
