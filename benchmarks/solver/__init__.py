"""Speed and exactness of the fits against the scripts that they replace, and against what users could write."""
