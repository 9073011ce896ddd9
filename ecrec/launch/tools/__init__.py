"""Programs that look at a running cluster, or measure this machine."""
