"""Stores in object stores: how fast they are read, and how much memory a training on them takes."""
