"""Speed and memory of an extraction against the original scripts and the bare forward pass."""
