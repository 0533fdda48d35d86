"""Arrays in, numbers and their uncertainty out; fits no probe."""
