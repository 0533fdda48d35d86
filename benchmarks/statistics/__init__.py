"""What honest statistics cost, and whether they keep what they promise."""
