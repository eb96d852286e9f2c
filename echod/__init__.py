"""An echo service (RFC 862) that never loses a byte.

To read it in one evening, in this order: ``protocol`` (one connection),
``factory`` (all of them), ``clock`` (their time), ``events`` (what they tell), ``kernel`` (what
they ask), ``fastpath`` (the shortest way of a byte), ``arrival``, ``tls`` and ``proxy`` (what may
come before a connection), ``datagram`` (UDP), ``client`` (the other end), ``testing`` (both ends in
memory), then ``daemon`` (the service that ``twistd`` runs) and ``probe`` (``echod-client``, which
measures a path).
"""

__all__ = [
    "Accepted",
    "Closed",
    "Drop",
    "Dropped",
    "Echo",
    "EchoClient",
    "EchoClientFactory",
    "EchoFactory",
    "EchoIncomplete",
    "EchoMismatch",
    "Ending",
    "Event",
    "HalfClosed",
    "HandshakeDone",
    "HeaderRead",
    "Observer",
    "Opened",
    "ProxyFactory",
    "Reason",
    "Refused",
    "__version__",
    "broadcast",
]

# Stated here alone: setup.cfg reads it from the source, without importing Twisted.
__version__ = "0.1.0"

TYPE_CHECKING = False  # as in typing, which takes ten milliseconds

if TYPE_CHECKING:
    from echod.client.protocol import EchoClient, EchoClientFactory, EchoIncomplete, EchoMismatch
    from echod.events import (
        Accepted,
        Closed,
        Drop,
        Dropped,
        Ending,
        Event,
        HalfClosed,
        HandshakeDone,
        HeaderRead,
        Observer,
        Opened,
        Reason,
        Refused,
        broadcast,
    )
    from echod.factory import EchoFactory
    from echod.protocol import Echo
    from echod.proxy import ProxyFactory

else:  # a type checker would accept any name from a module with __getattr__

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used: importing Twisted takes a third of a second.

        ``echod-client`` imports this package before it can prepare for Ctrl-C.
        """
        from importlib import import_module  # noqa: PLC0415 - only when it is needed

        homes = (
            ("client.protocol", "events", "factory", "protocol", "proxy") if name in __all__ else ()
        )
        for home in homes:
            found = getattr(import_module(f"{__name__}.{home}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
