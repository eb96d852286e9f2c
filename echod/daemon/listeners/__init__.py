"""Where the daemon listens: one module for each kind of listener."""
