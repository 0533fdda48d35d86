"""Speed and robustness against peers, measured in one run: ``python -m benchmarks``."""
