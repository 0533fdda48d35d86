"""What several benchmarks share: data, peers, timing, memory."""
