"""How far a sweep can be trusted, and what it beats."""
