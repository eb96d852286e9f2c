"""The plugin of ``twistd``: the name of the service, and its module."""

from twisted.application.service import ServiceMaker

echod = ServiceMaker("echod", "echod.daemon", "An echo service (RFC 862).", "echod")
