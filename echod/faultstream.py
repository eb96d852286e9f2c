"""The faults of one stream: from received bytes to bytes and actions with their times. No I/O.

Each rule is a stage. A stage works on the reply as the stages before it have left it, so its places
are offsets in that reply. What leaves the last stage is sent in this order, each item not before
its time.

The stages are generators: the caller can pause after each item. Without that, a rule for every byte
would occupy the reactor for a second at each receive. A stage yields an empty item for each step
that leaves nothing to send, so the steps between two items are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, TypeAlias

from echod.faultplan import AT_ACCEPT, MAX_NUMBER, Fault
from echod.faults import ActiveRule, Faults

TERMINAL: Final = ("reset", "close", "half-close")
"""The faults that end the reply."""

AT_BYTES: Final = ("damage", "swallow", "truncate")
"""The faults that change bytes: they fire at the first byte that they change."""

PIECES: Final = 50
"""The number of pieces a second that ``throttle`` sends."""

NOWHERE: Final = (math.inf, 0.0)

Item: TypeAlias = tuple[float, bytes | Fault | None]
"""The earliest time (seconds), and what is due then: bytes to send; a fault of the connection;
``None``: the end of the reply, because the peer has finished sending."""


class Stage:
    """One rule, on one connection.

    :param active: the rule.
    :param stream: the connection.
    """

    def __init__(self, active: ActiveRule, stream: StreamFaults) -> None:
        self._active = active
        self._stream = stream
        self._when, self._fault = active.rule.when, active.rule.fault
        self._offset = 0  # bytes that have come to this stage
        self._left = 0.0  # bytes for which the fault still lasts
        self._until = math.inf  # seconds: the time at which it ends
        self._free = 0.0  # seconds: the time from which on the next piece can be sent
        self._delay = 0.0  # seconds, of the latest message or receive
        self._random = active.random_source(stream.number)
        self._places = self._find_places()
        self._place = next(self._places)

    def _find_places(self) -> Iterator[tuple[float, float]]:
        """Yield the offset and the length in bytes of each place, in order."""
        where, name, size = self._when.where, self._fault.name, self._fault.size
        if where is None:
            start = self._when.after_bytes or 0
            length = {"damage": 1, "swallow": size or 1}.get(name, math.inf)
            yield (start + size if name == "truncate" else start), length
        elif name != "truncate" or size < where.size:
            chosen = where.next(1 + where.step * self._skipped(where.chance))
            while chosen is not None:
                start = (chosen - 1) * where.size
                if name == "damage":
                    yield start + int(self._random.random() * where.size), 1
                elif name == "swallow":
                    yield start, size or where.size
                elif name == "truncate":
                    yield start + size, where.size - size
                else:
                    yield start, where.size
                chosen = where.next(chosen + where.step * (1 + self._skipped(where.chance)))
        while True:
            yield NOWHERE

    def _skipped(self, chance: float) -> int:
        """Return how many chosen numbers come before the next one that has its chance.

        One draw from the geometric distribution: a draw for each number would take as long as the
        stream has bytes.
        """
        if chance == 1:
            return 0
        if chance == 0:
            return MAX_NUMBER
        draw = math.log1p(-self._random.random()) / math.log1p(-chance)
        return int(min(draw, MAX_NUMBER))

    def begin(self, now: float) -> Iterator[Item]:
        """Fire if no byte is needed for it, and the conditions hold now."""
        if self._waits() and self._stream.can_fire(self._active, now):
            yield from self._fire(now, now)

    def due(self, now: float) -> float:
        """Return the time at which :meth:`begin` has to be called again; infinite: never."""
        opens, closes = self._stream.times(self._active)
        return opens if self._waits() and now < opens < closes else math.inf

    def _waits(self) -> bool:
        """Return whether the rule needs no byte to fire, only its time."""
        needs_byte = self._when.where is not None or self._fault.name in AT_BYTES
        due = not needs_byte and self._place[0] <= self._offset
        return due and not self._stream.over

    def feed(self, items: Iterable[Item], now: float) -> Iterator[Item]:
        """Yield the output of the stage for ``items`` of the reply."""
        for due, item in items:
            if item == b"":
                yield due, item
            elif isinstance(item, bytes):
                yield from self._feed(item, due, now)
            else:
                delays = self._fault.name == "delay" and self._left and now < self._until
                yield due + (self._delay if delays else 0), item

    def _feed(self, data: bytes, due: float, now: float) -> Iterator[Item]:
        at = 0
        while at < len(data) and not self._stream.over:
            if self._left and now < self._until:
                piece = data[at : at + int(min(self._left, len(data)))]
                self._left -= len(piece)
                yield from self._change(piece, due)
            elif self._place[0] > self._offset:
                self._left = 0
                piece = data[at : at + int(min(self._place[0] - self._offset, len(data)))]
                yield due, piece
            elif self._place[0] == self._offset or self._when.where is None:
                self._left = 0
                if self._stream.can_fire(self._active, now):
                    yield from self._fire(due, now)
                    continue
                if self._when.where is not None:
                    self._place = next(self._places)
                    yield due, b""
                    continue
                piece = data[at:]  # the rule waits for its time
                yield due, piece
            else:  # another place has reached across this one
                self._place = next(self._places)
                yield due, b""
                continue
            self._offset += len(piece)
            at += len(piece)
            if piece and self._place[0] == self._offset:
                yield from self.begin(now)

    def _fire(self, due: float, now: float) -> Iterator[Item]:
        """Begin the fault at this place, unless the rule's limit is reached."""
        _, length = self._place
        self._place = next(self._places)
        if not self._stream.fire(self._active, self._offset, now):
            self._place = NOWHERE
            return
        name, end = self._fault.name, now + self._when.lasting
        if name in TERMINAL:
            self._stream.over = True
            yield due, self._fault
        elif name in ("greet", "insert"):
            yield due, self._fault.data
        elif name == "freeze":
            yield due, self._fault
        elif name == "deaf":
            self._stream.deaf_until = max(self._stream.deaf_until, end)
            self._left, self._until = math.inf, end
        else:
            self._left, self._until = length, end
            self._draw_delay()

    def _draw_delay(self) -> None:
        draw = self._active.draw(self._stream.number, f"delay {self._offset}")
        self._delay = self._fault.delay_of(draw)

    def _change(self, piece: bytes, due: float) -> Iterator[Item]:
        """Yield the output for a part of the reply to which the fault applies."""
        fault = self._fault
        if fault.name == "damage":
            yield due, bytes((piece[0] ^ 1,))
        elif fault.name == "delay":
            if self._when.where is None:  # each receive has its own delay
                self._draw_delay()
            yield due + self._delay, piece
        elif fault.name == "deaf" and self._until < math.inf:  # it was read with earlier bytes
            yield max(due, self._until), piece
        elif fault.name in ("throttle", "slice"):
            throttles = fault.name == "throttle"
            step = max(1, fault.size // PIECES) if throttles else fault.size
            for at in range(0, len(piece), step):
                part = piece[at : at + step]
                start = max(due, self._free)
                self._free = start + (len(part) / fault.size if throttles else fault.seconds)
                yield start, part
        else:
            yield due, b""


class StreamFaults:
    """The rules that apply to one connection.

    :param faults: the state of the plan, which gives the connection its number.
    :ivar opened: seconds: when the connection was opened.
    :ivar number: its number.
    :ivar deaf_until: seconds: until then, nothing is read.
    :ivar over: whether the reply has an end, made by the peer or a fault: none fires after it.
    """

    def __init__(self, faults: Faults) -> None:
        self.opened = -math.inf
        self.deaf_until = -math.inf
        self.over = False
        self._faults = faults
        self.number, rules = faults.next()
        applying = list(rules)
        self._stages = [Stage(each, self) for each in applying if each.name not in AT_ACCEPT]
        self._at_accept = [each for each in applying if each.name in AT_ACCEPT]

    def fire_first(self, names: Sequence[str], now: float) -> str | None:
        """Fire the first rule of the connection that has one of these faults outside the reply.

        :param names: of :data:`AT_ACCEPT`.
        :return: the name of its fault; ``None``: no rule has fired.
        """
        for each in self._at_accept:
            if each.name in names and self.can_fire(each, now) and self.fire(each, 0, now):
                return each.name
        return None

    def begin(self, now: float) -> Iterator[Item]:
        """Yield what is sent before the peer has sent a byte, or because time has passed."""
        items: Iterator[Item] = iter(())
        for stage in self._stages:
            items = chain(stage.feed(items, now), stage.begin(now))
        return items

    def receive(self, data: bytes, now: float) -> Iterator[Item]:
        """Yield what is sent because ``data`` was received."""
        return self._through((now, data), now)

    def end(self, now: float) -> Iterator[Item]:
        """Yield what is sent because the peer has finished sending."""
        yield from self._through((now, None), now)
        self.over = True

    def due(self, now: float) -> float:
        """Return the time at which :meth:`begin` has to be called again; infinite: never."""
        return min((stage.due(now) for stage in self._stages), default=math.inf)

    def _through(self, item: Item, now: float) -> Iterator[Item]:
        # A chain of generators: what fires first is what comes first in the stream, whatever the
        # sizes of the receives.
        items = iter((item,))
        for stage in self._stages:
            items = stage.feed(items, now)
        return items

    def times(self, active: ActiveRule) -> tuple[float, float]:
        """Return the times from which on and before which the rule can fire, in seconds."""
        start, end = active.window
        return max(self.opened + active.rule.when.after_seconds, start), end

    def can_fire(self, active: ActiveRule, now: float) -> bool:
        """Return whether the rule can fire now."""
        start, end = self.times(active)
        return start <= now < end

    def fire(self, active: ActiveRule, offset: int, now: float) -> bool:
        """Count a firing: see :meth:`Faults.fire`."""
        return self._faults.fire(active, self.number, offset, now)
