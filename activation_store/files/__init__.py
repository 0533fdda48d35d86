"""Whole or not at all, one writer, never through a link."""
