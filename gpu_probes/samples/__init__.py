"""What is known about the rows: labels, groups, folds, permutations."""
