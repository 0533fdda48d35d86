"""Where the cells come from, and how they reach the device."""
