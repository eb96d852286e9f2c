"""``echod-client``: measure a path with the help of an echo service (RFC 862), any of them.

To read it in this order: ``messages`` (what is sent), ``replies`` (what became of it),
``schedule`` (when it leaves), ``times`` (how long it took), which decide, and know no socket; then
``target`` and ``way`` (where to), ``channels`` (the sockets), ``measurement``, ``ping``, ``load``,
``pipe`` (the commands), ``report``, ``plot`` and ``terminal`` (what is said of it), ``options``
and ``main``.
"""
