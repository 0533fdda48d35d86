"""Rows in, coefficients with a certificate out."""
