"""The command line: a file for what belongs together; parse, call, print; no numerics."""
