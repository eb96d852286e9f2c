"""The listeners of the daemon: one module for each kind."""
