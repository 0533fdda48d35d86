"""What a service pays: prompts scored one at a time, in small batches, and all at once."""
