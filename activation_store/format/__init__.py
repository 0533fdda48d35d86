"""The meaning of every byte of a store; pure, no I/O."""
