"""What all commands share at a terminal."""
