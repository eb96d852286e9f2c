"""Faults on demand: the state of a :class:`~echod.faultplan.Plan` on a port. No I/O.

:class:`Faults` has the number of the next connection, how often each rule has fired, and the latest
firings.

Decisions are deterministic. Whether a rule with a probability fires depends on the seed, on the
position of the rule in its plan, on the number of the connection and on the place in its stream. It
depends neither on time nor on other connections.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Final, NamedTuple

from echod.events import Fired, Observer, ignore, notify
from echod.faultplan import DATAGRAM, STREAM, TLS, Choice, Fault, Plan, Rule, When, when

__all__ = ["DATAGRAM", "MAX_FIRINGS", "STREAM", "TLS", "ActiveRule", "Choice", "Fault"]
__all__ += ["Faults", "Firing", "Plan", "Rule", "When", "when"]

MAX_FIRINGS: Final = 1000
"""The number of firings that are kept: the latest ones."""

MAX_TEXT: Final = 200
"""Characters of a rule's text in events, counters and logs: each firing repeats it."""


class Firing(NamedTuple):
    """One firing, and its time in seconds since the plan was set."""

    fired: Fired
    seconds: float


class ActiveRule:
    """A rule on a port.

    :ivar rule: the rule.
    :ivar text: the rule as text, shortened to :data:`MAX_TEXT`.
    :ivar fired: how often it has fired.
    """

    __slots__ = ("_index", "_seed", "_skipped", "fired", "rule", "since", "text")

    def __init__(self, rule: Rule, seed: int, index: int, skipped: int, since: float) -> None:
        self.rule = rule
        text = str(rule)
        self.text = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
        self.fired = 0
        self.since = since
        self._seed = seed
        self._index = index
        self._skipped = skipped  # connections before the rule was added

    @property
    def name(self) -> str:
        """The name of its fault."""
        return self.rule.fault.name

    @property
    def window(self) -> tuple[float, float]:
        """The times between which it can fire, in seconds of the clock."""
        start, end = self.rule.when.window
        return self.since + start, self.since + end

    def draw(self, number: int, purpose: str = "") -> float:
        """Return a random number, 0 or more and below 1: always the same for the same arguments.

        :param number: of a connection or datagram.
        """
        digest = hashlib.blake2b(self._key(number, purpose), digest_size=7).digest()
        return int.from_bytes(digest, "big") / 2**56

    def random_source(self, number: int) -> random.Random:
        """Return a source of random numbers: always the same ones for the same connection."""
        # The number that Random makes of bytes. Python 3.13 imports a module to do so, which is
        # not there after chroot(2).
        key = self._key(number, "stream")
        return random.Random(int.from_bytes(key + hashlib.sha512(key).digest(), "big"))

    def _key(self, number: int, purpose: str) -> bytes:
        return f"{self._seed}/{self._index}/{number - self._skipped}/{purpose}".encode()

    def applies(self, number: int) -> bool:
        """Return whether the rule applies to the connection or datagram ``number``."""
        which = self.rule.when.which
        if which is None:
            return True
        own = number - self._skipped
        return which.next(own) == own and self.draw(number, "which") < which.chance

    def can_fire(self, pending: int = 0) -> bool:
        """Return whether the limit of the rule allows another firing.

        :param pending: firings that are expected, and not counted yet.
        """
        times = self.rule.when.times
        return times is None or self.fired + pending < times


class Faults:
    """The state of a plan on one port.

    :param plan: the rules.
    :param now: seconds, by any monotonic clock.
    :param serves: what the port serves, a key of :data:`~echod.faultplan.ON`.
    :param port: the name of the port, for the events.
    :raises ValueError: for a plan with rules that the port cannot have.
    :ivar observer: is called with each :class:`~echod.events.Fired`.
    :ivar rules: the rules, and how often each has fired.
    :ivar number: the number of connections or datagrams since the plan was set.
    :ivar firings: the latest firings.
    """

    def __init__(self, plan: Plan, now: float, serves: str = STREAM, port: str = "") -> None:
        self.observer: Observer = ignore
        self.serves = serves
        self.port = port
        self.firings: deque[Firing] = deque(maxlen=MAX_FIRINGS)
        self.set(plan, now)

    def set(self, plan: Plan, now: float) -> None:
        """Replace the plan. Connections that are open keep the rules that they have.

        :raises ValueError: for a plan with rules that the port cannot have.
        """
        plan.check(self.serves)
        self.plan, self.since, self.number = plan, now, 0
        self.firings.clear()
        self.rules = [
            ActiveRule(rule, plan.seed, index, 0, now) for index, rule in enumerate(plan.rules)
        ]

    def add(self, rule: Rule, now: float) -> None:
        """Add a rule. It counts the connections that arrive after ``now``.

        :raises ValueError: for a rule that the port cannot have.
        """
        plan = replace(self.plan, rules=(*self.plan.rules, rule))
        plan.check(self.serves)
        self.plan = plan
        self.rules.append(ActiveRule(rule, plan.seed, len(self.rules), self.number, now))

    def start(self, now: float) -> None:
        """Count the times of the plan from ``now``, because the port begins to listen."""
        self.since = now
        for each in self.rules:
            each.since = now

    def reset(self) -> None:
        """Set all counts to 0, and forget the firings."""
        self.firings.clear()
        for each in self.rules:
            each.fired = 0

    @property
    def counts(self) -> Counter[str]:
        """How often each kind of fault has fired, by name."""
        counts: Counter[str] = Counter()
        for each in self.rules:
            counts[each.name] += each.fired
        return counts

    def next(self) -> tuple[int, Iterator[ActiveRule]]:
        """Count a connection or datagram, and return its number and the rules that apply to it."""
        self.number = number = self.number + 1
        return number, (each for each in self.rules if each.applies(number))

    def fire(self, active: ActiveRule, number: int, offset: int, now: float) -> bool:
        """Count a firing, unless the rule has reached its limit; return whether it was counted.

        :param number: of the connection or datagram.
        :param offset: bytes of the reply before the place of the fault.
        """
        if not active.can_fire():
            return False
        active.fired += 1
        fired = Fired(active.text, number, offset, self.port)
        self.firings.append(Firing(fired, now - self.since))
        notify(self.observer, fired)
        return True
