"""What answers questions: a model in this process, or a server; one file each."""
