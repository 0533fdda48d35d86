"""From datasets to questions, labels and groups."""
