"""Every cell: plan, fit, select, collect."""
