"""``echod-client``: measure a path with the help of an echo service (RFC 862), any of them.

Read it in this order. Without a socket: ``payloads`` (what is sent), ``replies`` (which reply
belongs to which message), ``pacing`` (when messages leave) and ``histogram`` (round-trip times).
Then ``target`` and ``connector`` (where to), ``channels`` (the sockets), ``measurement``, ``ping``,
``load``, ``pipe`` (the commands), ``report``, ``plot`` and ``terminal`` (the output), ``options``
and ``main``.
"""
