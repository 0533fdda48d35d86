"""Every cell: plan, fit, choose, gather."""
