"""Tasks, sandbox, metrics."""
