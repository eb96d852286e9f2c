"""``echod-client``: measure a network path to any echo service (RFC 862).

Reading order. Without I/O: ``payloads`` (what is sent), ``replies`` (which reply belongs to which
message), ``pacing`` (when messages are sent) and ``histogram`` (round-trip times). Then ``target``
and ``connector`` (connect), ``epoll``, ``streams`` and ``datagrams`` (the sockets),
``measurement``, ``ping``, ``load``, ``pipe`` (the commands), ``report``, ``plot`` and ``terminal``
(the output), ``options`` and ``main``.
"""
