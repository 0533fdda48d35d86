"""Write, read and check one store."""
