"""Datasets become questions, labels and groups."""
