"""To and from the hub."""
