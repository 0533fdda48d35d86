"""Measurements of probesweep against its peers and against a failing machine: ``python -m benchmarks``."""
