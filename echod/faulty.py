"""FaultyEcho and FaultyEchoFactory: echo with the faults of a plan, and count them.

:mod:`echod.faultstream` decides what is sent, and when. This file does it, on the ordinary path of
:class:`~echod.protocol.Echo`: transport, limits, timeouts and drain are the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from echod.arguments import check_type
from echod.closing import Delivery
from echod.events import Closed, Ending, Reason
from echod.factory import EchoFactory
from echod.faults import STREAM, Fault, Faults, Plan
from echod.faultstream import Item, StreamFaults
from echod.protocol import Echo
from echod.timeouts import Progress
from echod.transport import (
    buffered,
    half_closes,
    is_gone,
    kernel_socket,
    lose,
    resets_on_error,
    send_fin,
    send_now,
    unsent,
)

MAX_QUEUED: Final = 1024 * 1024
"""Bytes that wait for their time, above which a connection is not read."""

OVERHEAD: Final = 160
"""Bytes that each waiting item counts in addition to its data: 150 were measured, for its objects.
A rule such as ``slice 1 byte every 1s`` makes an item of each byte."""

STEP: Final = 16
"""The number of items of one step (:class:`~echod.turns.Worker`): with a rule for every byte, 0.1
to 0.2 ms."""

CHECK: Final = 5.0
"""Seconds between two checks whether a connection that is not read still exists."""


class FaultyEcho(Echo):
    """Echo one connection as the rules of a plan say. :class:`FaultyEchoFactory` makes these.

    :ivar stream: the rules of this connection.
    """

    stream: StreamFaults
    factory: FaultyEchoFactory

    _sent = 0  # bytes passed to the transport
    _queued = 0  # bytes in the queue, with their overhead
    _last = 0.0  # seconds: the time of the last item in the queue
    _held = False  # whether a fault or a full queue stops reading
    _ended: Ending | None = None  # the ending after the peer has finished
    _fault = ""  # the fault that ends the connection
    _timer: IDelayedCall | None = None
    _frozen_until = -math.inf  # seconds: until then, nothing is read or sent
    _over = False
    _checks = 0
    _begins = False  # whether faults that need no byte are due
    _called = False  # whether something may have become due since the step began
    _working = False  # whether a step follows in this turn of the reactor, or in a later one

    @resets_on_error
    def connectionMade(self) -> None:
        """Report to the factory, and begin with the faults that need no byte."""
        self._work: deque[Iterator[Item]] = deque()  # items that are not decided yet
        self._queue: deque[Item] = deque()
        super().connectionMade()
        self.stream.opened = self._opened
        self._proceed()

    @resets_on_error
    def dataReceived(self, data: bytes) -> None:
        """Send back ``data``, as the faults change it."""
        self._received += len(data)
        if not self._closing:
            self._work.append(self.stream.receive(data, self.factory.clock.seconds()))
            self._proceed()

    @resets_on_error
    def _finish_reply(self, ending: Ending) -> None:
        """Close when everything is sent: the peer sends nothing more."""
        if self._ended is None and not self._closing:
            self._ended = ending
            self._work.append(self.stream.end(self.factory.clock.seconds()))
            self._proceed()

    @resets_on_error
    def _proceed(self) -> None:
        """Do all that is due, and set a timer for what is due later.

        A receive can be more work than one turn of the reactor has time for.
        """
        self._begins = self._called = True
        if not self._working:
            self._working = True
            self.factory.turns.begin(self, self.factory.clock)

    def step(self) -> bool:
        """Decide and do what is due, up to :data:`STEP` items; return whether more may be."""
        self._called = False
        if not self._over:
            self._step()
        self._working = self._called and not self._over
        return self._working

    @resets_on_error
    def _step(self) -> None:
        now = self.factory.clock.seconds()
        for _ in range(STEP):
            if not (self._send_due(now) or self._decide(now)):
                break
        else:
            self._called = True
        self._set_reading(now)
        self._set_timer(now)

    def _decide(self, now: float) -> bool:
        """Put the next item into the queue; return whether there was work, and space for it."""
        if self._over or self._closing or self._queued > MAX_QUEUED:
            return False
        if not self._work:
            if not self._begins:
                return False
            self._begins = False
            self._work.append(self.stream.begin(now))
        for due, item in self._work[0]:
            if item != b"":
                self._last = max(self._last, due)
                self._queue.append((self._last, item))
                self._queued += OVERHEAD + (len(item) if isinstance(item, bytes) else 0)
            return True
        self._work.popleft()
        return True

    def _send_due(self, now: float) -> bool:
        """Send or do the first item of the queue, if it is due; return whether it was."""
        if not self._queue or self._queue[0][0] > now or self._stops(now):
            return False
        _, item = self._queue.popleft()
        self._queued -= OVERHEAD
        if isinstance(item, bytes):
            self._queued -= len(item)
            self._send(item)
        else:
            self._act(item, now)
        return True

    def _stops(self, now: float) -> bool:
        """Return whether nothing may be sent now."""
        return self._over or self._closing or self._paused or self._frozen_until > now

    def _send(self, data: bytes) -> None:
        """Send ``data``, in a separate segment if the kernel accepts it at once."""
        self._sent += len(data)
        sock = kernel_socket(self.transport)
        sent = 0 if sock is None or unsent(self.transport) else send_now(sock, data)
        if sent < len(data):
            self.transport.write(data[sent:])
        self.watch()

    def _act(self, fault: Fault | None, now: float) -> None:
        """Apply a fault of the connection; ``None``: close it, because the reply has ended."""
        transport: Any = self.transport
        if fault is None:
            self._close(Ending.FAULT if self._fault else self._ended or Ending.FINISHED)
            return
        if fault.name == "freeze":
            self._frozen_until = now + fault.seconds
            return
        self._fault = fault.name
        self._ending = Ending.FAULT
        if self._fault == "half-close" and half_closes(transport):
            send_fin(transport)
        elif self._fault != "reset":  # Twisted's own TLS cannot half-close
            self._close(Ending.FAULT)
        else:
            self._closing = True
            transport.unregisterProducer()
            self.watch()
            self._delivery = Delivery(transport, self.factory.clock, fin=False)

    def _finish(self, below: Any) -> None:
        if self._fault == "close":
            # Also for few bytes: a close with unread input would be a reset, and a reset can
            # destroy bytes that the peer has not read.
            self.watch()
            self._delivery = Delivery(below, self.factory.clock)
        else:
            super()._finish(below)

    @resets_on_error
    def resumeProducing(self) -> None:
        """Continue to send: the transport has sent its buffer."""
        if self._ended is None or self._closing:
            super().resumeProducing()
        else:
            self._paused = False  # the transport has found the end of the stream: never read again
        if self._held:
            self.transport.pauseProducing()
        self._proceed()

    def _set_reading(self, now: float) -> None:
        """Stop reading while a fault or a full queue requires it."""
        stops = max(self._frozen_until, self.stream.deaf_until) > now
        holds = stops or bool(self._work) or self._queued > MAX_QUEUED
        if holds != self._held and not (self._over or self._closing or self._ended):
            self._held = holds
            if holds:
                self.transport.pauseProducing()
            elif not self._paused:
                self.transport.resumeProducing()

    def _set_timer(self, now: float) -> None:
        """Proceed again as soon as something is due."""
        self._cancel_timer()
        if self._over or self._closing:
            return
        stream = self.stream
        due = [stream.due(now), self._frozen_until, stream.deaf_until]
        if self._queue and not self._paused:
            due.append(self._queue[0][0])
        if self._held:
            due.append(now + CHECK)
        soonest = min((each for each in due if each > now), default=math.inf)
        if soonest < math.inf:
            self._timer = self.factory.clock.callLater(soonest - now, self._wake)

    def _cancel_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    @resets_on_error
    def _wake(self) -> None:
        """Proceed, unless the connection has ended while it was not read.

        Not in a step: the reactor would go on with a transport that ends while it is read.
        """
        if self._held and is_gone(self.transport):
            lose(self.transport)
        else:
            self._proceed()

    @property
    def buffered(self) -> int:
        """Bytes received less the bytes that the kernel has accepted for sending."""
        return self._received - self._sent + buffered(self.transport)

    def progress(self, *, draining: bool) -> Progress:
        """Return the present state. Bytes that wait for their time count as progress."""
        progress = super().progress(draining=draining)
        if progress.waits_for_peer or not (self._queue or self._work):
            return progress
        self._checks += 1
        return progress._replace(marker=-self._checks)

    def end(self, ending: Ending) -> bool:
        """End as any connection does; but reset one whose unread input is never read."""
        ended = super().end(ending)
        if not ended and self.stream.deaf_until == math.inf:
            self._ending = Ending.FAULT
            self.transport.unregisterProducer()  # which would name another ending
            self.abort()
            ended = True
        return ended

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report how the connection ended."""
        self._over = True
        self._cancel_timer()
        super().connectionLost(reason)

    def _sum_up(self, reason: Failure) -> Closed:
        return replace(super()._sum_up(reason), unsent=self.buffered)


SHARED: Final = (
    *("registry", "connections", "pending", "limits", "timeouts", "turns"),
    *("observer", "clock", "handshake_timeout", "verbose"),
)
"""The attributes that a factory beside another one takes from it."""


class FaultyEchoFactory(EchoFactory):
    """Build a :class:`FaultyEcho` for each connection, on any stream endpoint.

    :param plan: the rules; or their state on a port, which has an observer, a kind and a name
        already, so that the next two do not apply.
    :param serves: :data:`~echod.faults.STREAM`, or :data:`~echod.faults.TLS` behind TLS.
    :param port: the name of the port, for events.
    :param beside: a factory with which it shares limits, timeouts, drain, observer and clock;
        ``options`` do not apply then.
    :param options: see :class:`~echod.factory.EchoFactory`.
    :raises TypeError: for an argument of another type.
    :raises ValueError: for a plan with rules that the port cannot have.
    :ivar faults: the state of the plan.
    """

    protocol = FaultyEcho
    admission: StreamFaults

    def __init__(
        self,
        plan: Plan | Faults,
        *,
        serves: str = STREAM,
        port: str = "",
        beside: EchoFactory | None = None,
        **options: Any,
    ) -> None:
        check_type("plan", plan, (Plan, Faults), "a Plan")
        super().__init__(fast_path=False, **options)
        if beside is not None:
            shared = vars(beside)
            vars(self).update({name: shared[name] for name in SHARED if name in shared})
        if isinstance(plan, Faults):
            self.faults = plan
        else:
            self.faults = Faults(plan, self._seconds(), serves, port)
            # Looked up when a rule fires: an application may replace it.
            self.faults.observer = lambda fired: self.observer(fired)  # noqa: PLW0108

    def _seconds(self) -> float:
        return self.clock.seconds() if hasattr(self, "clock") else 0.0

    def use_reactor(self, reactor: object) -> None:
        """Serve on ``reactor``. The life of the port begins now, unless there was a clock."""
        begins = not hasattr(self, "clock")
        super().use_reactor(reactor)
        if begins:
            self.faults.start(self._seconds())

    def refusal_reason(self, peer: IAddress | None) -> Reason | None:
        """Return why a new connection is refused, or ``None`` to admit it, with its number."""
        reason = super().refusal_reason(peer)
        if reason is None:
            self.admission = StreamFaults(self.faults)
            if self.admission.fire_first(("refuse",), self._seconds()):
                reason = Reason.FAULT
        return reason

    def make_echo(self, admission: Any = None) -> FaultyEcho:
        """Return a protocol for one connection, with its rules."""
        echo = super().make_echo()
        assert isinstance(echo, FaultyEcho)
        echo.stream = admission
        return echo
