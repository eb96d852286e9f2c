"""Kinds of stream, each as a pair of endpoints, and an echo server on them."""
