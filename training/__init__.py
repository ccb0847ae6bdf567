"""One loop for every task: strict config, addressed data, exact resume."""
