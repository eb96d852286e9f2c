"""What echod promises, as tests. Their docstrings are the specification."""
