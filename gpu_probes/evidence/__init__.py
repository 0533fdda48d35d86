"""How far a sweep can be trusted, and which baselines it beats."""
