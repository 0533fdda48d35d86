"""One extraction: check everything, then run shard by shard."""
