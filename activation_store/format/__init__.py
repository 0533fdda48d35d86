"""What every byte of a store means; pure, no I/O."""
