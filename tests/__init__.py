"""What echod promises, as tests. Their docstrings are the specification."""

from hypothesis import HealthCheck, settings

# How long an example takes is the machine's business, not the property's.
settings.register_profile("echod", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("echod")
