"""What is known of the rows: labels, groups, folds, shuffles."""
