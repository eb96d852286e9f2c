"""Pairs of endpoints, one class for each kind of stream, and an echo server on them."""
