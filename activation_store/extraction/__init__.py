"""One run: everything checked, then shard by shard."""
