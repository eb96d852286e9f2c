"""``echod-client``: measure a network path to any echo service (RFC 862).

Reading order. Without I/O: ``payloads`` (contents of messages), ``replies`` (match replies to
messages), ``pacing`` (times of messages) and ``histogram`` (round-trip times). Then ``target``
and ``connector`` (connect), ``epoll``, ``streams`` and ``datagrams`` (the sockets),
``measurement``, ``ping``, ``statistics``, ``load``, ``stdio`` and ``pipe`` (the runs), ``report``,
``text``, ``plot``, ``terminal`` and ``console`` (the output), ``options``, ``commands``, ``runner``
and ``main``.
"""
