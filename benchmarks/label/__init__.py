"""Labels: attempts per second against generate, whether both sample the same, and the ceiling against simulations."""
