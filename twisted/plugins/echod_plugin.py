"""What ``twistd`` finds: the name of the service, and where its code is."""

from twisted.application.service import ServiceMaker

echod = ServiceMaker("echod", "echod.daemon", "An echo service (RFC 862).", "echod")
