"""The two packages wired together: trainings over stores, probes in use, experiments, sharing, trackers."""
