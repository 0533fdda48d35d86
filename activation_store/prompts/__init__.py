"""A question becomes token ids, with known positions."""
