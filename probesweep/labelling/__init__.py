"""Success rates: several answers to each question are sampled, and a verifier says which are right."""
