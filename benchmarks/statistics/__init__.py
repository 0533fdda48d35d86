"""Cost and calibration of nested CV, permutations and intervals."""
