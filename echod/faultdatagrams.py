"""Faults of datagrams: drop, duplicate, reorder, delay, damage, truncate, pad.

:func:`replies_to` applies a plan to one datagram, without I/O. :class:`FaultyReplies` sends the
replies at once or later. Two kinds of port use it: :class:`FaultyDatagramPort` and, for
``reactor.listenUDP``, :class:`FaultyDatagrams`.

Only a datagram that :mod:`echod.udprules` admits has a number. A rule fires for each reply that
the rules before it have left, unless it leaves the reply as it is: ``truncate 10 bytes`` does not
fire for 10 bytes. A delay comes before the wait of ``reorder``, whatever the order of their rules.

A port with ``duplicate`` or ``pad`` sends more bytes than it receives: keep it from senders that
could forge a source address.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorFDSet
from twisted.python.failure import Failure

from echod.arguments import check_type
from echod.events import Drop
from echod.faults import DATAGRAM, ActiveRule, Faults
from echod.udp import DatagramEcho, DatagramPort, EchoDatagrams, Transmit
from echod.udporigin import Origin
from echod.udpsocket import SIZE, Exchange

HOLD: Final = 0.2
"""Seconds for which ``reorder`` holds a reply, if none to a later datagram is sent."""

MAX_COPIES: Final = 8
"""A rule ``duplicate`` duplicates this many replies to one datagram, the first ones. Otherwise the
number of replies would be exponential in the number of rules."""

MAX_WAITING: Final = 16 * 1024 * 1024
"""Bytes of the replies that wait on one port. A reply above that is dropped (Drop.NOT_SENT)."""

OVERHEAD: Final = 2048
"""Bytes that each waiting reply counts in addition to its data: 1.7 to 1.9 KiB were measured, for
its objects and its timer."""


class FaultyReply(NamedTuple):
    """A reply to a datagram.

    :ivar peer: the source's socket address.
    :ivar transmit: sends ``data`` to ``peer``.
    :ivar number: the number of the datagram.
    :ivar delay: seconds.
    :ivar reorder: the rule that holds the reply until one to a later datagram was sent.
    """

    data: bytes
    peer: Any
    transmit: Transmit
    number: int = 0
    delay: float = 0.0
    reorder: ActiveRule | None = None


def replies_to(echo: FaultyReply, faults: Faults, now: float) -> list[FaultyReply]:
    """Return the replies to a datagram, and count the firings, except those of ``reorder``.

    :param echo: the reply without faults.
    :param now: seconds, by the clock with which the plan was set.
    """
    number, rules = faults.next()
    replies = [echo._replace(number=number)]
    for active in rules:
        start, end = active.window
        if max(start, active.since + active.rule.when.after_seconds) <= now < end:
            before, replies = replies, []
            for copy, reply in enumerate(before):
                after = apply(active, reply, copy)
                fires = after != [reply] and active.can_fire()
                if fires and active.rule.fault.name != "reorder":
                    faults.fire(active, number, 0, now)
                replies += after if fires else [reply]
    return replies


def apply(active: ActiveRule, reply: FaultyReply, copy: int) -> list[FaultyReply]:
    """Return what a rule makes of one reply, which is number ``copy`` of its datagram, from 0."""
    fault, data = active.rule.fault, reply.data
    purpose = f"copy {copy}"
    match fault.name:
        case "drop":
            return []
        case "duplicate" if copy < MAX_COPIES:
            return [reply, reply]
        case "reorder":
            return [reply._replace(reorder=reply.reorder or active)]
        case "delay":
            return [
                reply._replace(
                    delay=reply.delay + fault.delay_of(active.draw(reply.number, purpose))
                )
            ]
        case "damage" if data:
            at = int(active.draw(reply.number, purpose) * len(data))
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        case "truncate":
            data = data[: fault.size]
        case "pad":  # the kernel refuses to send SIZE bytes, which is counted
            data = data.ljust(min(len(data) + fault.size, SIZE), b"\0")
    return [reply._replace(data=data)]


class FaultyReplies:
    """Sends the replies of one port: at once, after a delay, or out of order.

    :param datagrams: the counters, and the clock of the delays.
    :param faults: the state of the port's plan, set by the same clock.
    :raises TypeError: for an argument of another type.
    :raises ValueError: if the plan has a rule that a port of datagrams cannot have.
    """

    def __init__(self, datagrams: EchoDatagrams, faults: Faults) -> None:
        check_type("faults", faults, Faults, "Faults")
        faults.plan.check(DATAGRAM)
        self._datagrams, self._faults = datagrams, faults
        self._space = MAX_WAITING
        self._waiting: set[IDelayedCall] = set()
        self._held: dict[Any, FaultyReply] = {}  # by source; of each at most one

    def answer(self, echo: FaultyReply) -> None:
        """Reply to an admitted datagram, as the plan says.

        :param echo: the reply without faults.
        """
        replies = replies_to(echo, self._faults, self._datagrams.clock.seconds())
        if not replies:
            self._datagrams.dropped(Drop.FAULT, echo.peer)
        for reply in replies:
            if reply.delay:
                self._wait(reply.delay, reply, self._send_or_hold)
            else:
                self._send_or_hold(reply)

    def close(self) -> None:
        """Cancel the replies that wait."""
        for call in self._waiting:
            call.cancel()
        self._waiting.clear()
        self._held.clear()
        self._space = MAX_WAITING

    def _wait(self, seconds: float, reply: FaultyReply, then: Callable[..., None]) -> bool:
        """Call ``then`` after ``seconds``; if there is no space, drop the reply."""
        cost = OVERHEAD + len(reply.data)
        if cost > self._space:
            self._datagrams.dropped(Drop.NOT_SENT, reply.peer)
            return False

        def end() -> None:
            self._waiting.remove(call)
            self._space += cost
            then(reply)

        self._space -= cost
        call = self._datagrams.clock.callLater(seconds, end)
        self._waiting.add(call)
        return True

    def _send_or_hold(self, reply: FaultyReply) -> None:
        rule = reply.reorder
        if (
            rule is None
            or reply.peer in self._held
            or not rule.can_fire(sum(held.reorder is rule for held in self._held.values()))
        ):
            self._send(reply)
        elif self._wait(HOLD, reply, self._release):
            self._held[reply.peer] = reply

    def _release(self, reply: FaultyReply) -> None:
        """Send a held reply, unless it was sent before or the port was closed."""
        if self._held.get(reply.peer) is reply:
            del self._held[reply.peer]
            self._send(reply)

    def _send(self, reply: FaultyReply) -> None:
        if self._datagrams.send(reply.data, reply.peer, reply.transmit):
            held = self._held.get(reply.peer)
            if held and held.reorder and held.number < reply.number:
                self._faults.fire(held.reorder, held.number, 0, self._datagrams.clock.seconds())
                self._release(held)


class FaultyDatagramPort(DatagramPort):
    """A UDP port with faults, that replies from the address that each datagram was sent to.

    :param reactor: watches the socket.
    :param sock: a bound socket of family AF_INET or AF_INET6. The port closes it in the end.
    :param datagrams: the rules and counters, and the clock of the delays.
    :param faults: the state of the port's plan, set by the same clock.
    :raises TypeError: for an argument of another type.
    :raises ValueError: if the plan has a rule that a port of datagrams cannot have.
    """

    def __init__(
        self, reactor: IReactorFDSet, sock: socket.socket, datagrams: EchoDatagrams, faults: Faults
    ) -> None:
        super().__init__(reactor, sock, datagrams)
        self._replies = FaultyReplies(datagrams, faults)

    def connectionLost(self, reason: Failure) -> None:
        """Close the port, and cancel the replies that wait."""
        super().connectionLost(reason)
        self._replies.close()

    def doRead(self) -> None:
        """Receive the datagrams one by one, until :data:`~echod.turns.TURN` is used up."""
        self._echo(self._singles)

    def _reply(self, _: Exchange, origins: Sequence[Origin], *rest: Any) -> None:
        _sizes, first, end = rest
        for origin in origins[first:end]:
            transmit = partial(self._transmit, origin.source)
            self._replies.answer(FaultyReply(self._singles.datagram(), origin.peer, transmit))

    def _transmit(self, source: Any, data: bytes, peer: Any) -> None:
        self._socket.sendmsg([data], source, 0, peer)


class FaultyDatagrams(DatagramEcho):
    """Echo the datagrams of one Twisted port, with faults.

    ``reactor.listenUDP(port, FaultyDatagrams(datagrams, faults))``; see
    :class:`~echod.udp.DatagramEcho`.

    :param datagrams: the rules and counters, and the clock of the delays.
    :param faults: the state of the port's plan, set by the same clock.
    :raises TypeError: for an argument of another type.
    :raises ValueError: if the plan has a rule that a port of datagrams cannot have.
    """

    def __init__(self, datagrams: EchoDatagrams, faults: Faults) -> None:
        super().__init__(datagrams)
        self._replies = FaultyReplies(datagrams, faults)

    def stopProtocol(self) -> None:
        """Unregister the port, and cancel the replies that wait."""
        super().stopProtocol()
        self._replies.close()

    def _reply(self, datagram: bytes, addr: Any, transmit: Transmit) -> None:
        self._replies.answer(FaultyReply(datagram, addr, transmit))
