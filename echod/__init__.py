"""Echo service (RFC 862) on Twisted that never loses a byte, and a client that measures paths.

The core is the modules of this package, and takes an evening to read, in this order:

1. Vocabulary: ``events``, ``addresses``.
2. TCP and UNIX sockets: ``transport``, ``socketoptions``, ``limits``, ``timeouts``, ``drain``,
   ``registry``, ``closing``, ``protocol`` (one connection), ``factory`` (all connections).
3. The fast path: ``linger``, ``fastset``, ``splice`` (long messages), ``fastpath`` (bytes from
   socket to socket), ``fastprotocol`` (from a transport and back), ``deferred`` (connections
   without a transport).
4. Before the first byte: ``handshake``, ``certificates``, ``tlsrecords``, ``tlstransport``,
   ``tls``, ``proxy``.
5. UDP: ``udprules``, ``udporigin``, ``udpsocket``, ``udp``.
6. Faults on demand: ``faulterrors``, ``faultplan``, ``faultgrammar`` (plans as text), ``faults``
   (the state of a plan), ``faultstream`` (decisions for one stream), ``faulty``,
   ``faultdatagrams``, ``faultytls``.
7. Helpers for all of these: ``clock``, ``turns``, ``arguments``, ``durations``, ``numbers``.

``testing`` is an in-memory network for tests, ``peer`` an echo with faults in a thread, and
``pytest_plugin`` has fixtures of that. ``daemon`` is the service that ``twistd echod``
runs, and ``client`` is ``EchoClient`` and the command ``echod-client``; the core imports neither.
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
    "Fired",
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

# setup.cfg reads it from this source, without importing Twisted.
__version__ = "0.1.0"

TYPE_CHECKING = False  # not from typing, which takes ten milliseconds to import

if TYPE_CHECKING:
    from echod.client.protocol import EchoClient, EchoClientFactory, EchoIncomplete, EchoMismatch
    from echod.events import (
        Accepted,
        Closed,
        Drop,
        Dropped,
        Ending,
        Event,
        Fired,
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

else:  # hidden from type checkers, which accept any name from a module with __getattr__

    def __getattr__(name: str) -> object:
        """Import a public name on first use: importing Twisted takes a third of a second.

        ``echod-client`` imports this package before it can handle Ctrl-C.
        """
        from importlib import import_module  # noqa: PLC0415 - not needed for the version

        modules = (
            ("client.protocol", "events", "factory", "protocol", "proxy") if name in __all__ else ()
        )
        for module in modules:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
