"""The tests of echod. Their docstrings are its specification."""

from pathlib import Path

from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent

TIMEOUT = 20.0
"""Seconds after which a test on real sockets gives up; no test comes near it."""

# How long an example takes depends on the machine, not on the property.
settings.register_profile(
    "echod", max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("thorough", settings.get_profile("echod"), max_examples=150)
settings.load_profile("echod")
