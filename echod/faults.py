"""Faults on demand: rules that say when an echo misbehaves and how, and their counts. No I/O.

A :class:`Plan` has rules. A :class:`Rule` has conditions (:class:`When`) and one :class:`Fault`.
:class:`Faults` is the state of a plan on one port: the number of the next connection, how often
each rule has fired, and the latest firings.

Decisions are deterministic. Whether a rule with a probability fires depends on the seed, on the
position of the rule in its plan, on the number of the connection and on the place in its stream. It
depends neither on time nor on other connections.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Final, NamedTuple

from echod.arguments import check_number, check_type, check_whole
from echod.durations import LONGEST
from echod.events import Fired

STREAM: Final = "stream"
TLS: Final = "tls"
DATAGRAM: Final = "datagram"
"""What a port serves: plain stream sockets, TLS, or datagrams."""

ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("refuse", "reset", "close", "half-close", "silent", "deaf", "damage"), ()),
    **dict.fromkeys(("drop", "duplicate", "reorder"), ()),
    **dict.fromkeys(("stall", "abort", "no-close-notify", "old-version"), ()),
    **dict.fromkeys(("wrong-name", "expired", "self-signed"), ()),
    **dict.fromkeys(("greet", "insert"), ("data",)),
    **dict.fromkeys(("throttle", "truncate", "pad", "swallow"), ("size",)),
    "delay": ("seconds", "spread", "shape"),
    "freeze": ("seconds",),
    "slice": ("size", "seconds"),
}
"""The name of each fault, and the attributes of :class:`Fault` that it uses."""

OF_DATAGRAMS: Final = ("drop", "duplicate", "reorder", "delay", "damage", "truncate", "pad")
OF_TLS: Final = (
    *("stall", "abort", "wrong-name", "expired", "self-signed"),
    *("no-close-notify", "old-version"),
)
OF_STREAMS: Final = tuple(
    name for name in ARGUMENTS if name not in (*OF_TLS, "drop", "duplicate", "reorder", "pad")
)
"""The names of the faults of datagrams, of TLS alone, and of all streams."""

ON: Final = {STREAM: OF_STREAMS, TLS: (*OF_STREAMS, *OF_TLS), DATAGRAM: OF_DATAGRAMS}
"""The faults that each kind of port can have."""

SHAPES: Final = ("constant", "uniform", "normal", "exponential")

MAX_SIZE: Final = 1 << 30
"""Bytes: the highest size, position or rate."""

MAX_NUMBER: Final = 10**12
"""The highest number of a connection, message, byte or firing."""

MAX_FIRINGS: Final = 1000
"""The number of firings that are kept: the latest ones."""

MAX_TEXT: Final = 200
"""Characters of a rule's text in events, counters and logs: each firing repeats it."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Connections, datagrams, messages or bytes, chosen by their number, from 1.

    :ivar unit: ``connection``, ``datagram``, ``message`` or ``byte``; empty: what the port serves,
        connections or datagrams.
    :ivar size: bytes of a message; 1 for other units.
    :ivar first: the first chosen number.
    :ivar last: the highest number that can be chosen; ``None``: there is none.
    :ivar step: the distance between two chosen numbers.
    :ivar chance: the probability of each chosen number.
    :raises TypeError: for an attribute of another type.
    :raises ValueError: for a number out of bounds.
    """

    unit: str = ""
    size: int = 1
    first: int = 1
    last: int | None = None
    step: int = 1
    chance: float = 1.0

    def __post_init__(self) -> None:
        if self.unit not in ("", "connection", "datagram", "message", "byte"):
            raise ValueError(f"there is no unit {self.unit!r}")
        check_whole("size", self.size, 1, MAX_SIZE)
        check_whole("first", self.first, 1, MAX_NUMBER)
        check_whole("step", self.step, 1, MAX_NUMBER)
        if self.last is not None:
            check_whole("last", self.last, self.first, MAX_NUMBER)
        check_number("chance", self.chance, 0, 1, "connections, datagrams, messages or bytes")

    @property
    def within(self) -> bool:
        """Whether it chooses places within one stream, and not connections or datagrams."""
        return self.unit in ("message", "byte")

    def next(self, number: int) -> int | None:
        """Return the lowest chosen number from ``number`` on, whatever its probability."""
        steps = -(-max(0, number - self.first) // self.step)
        chosen = self.first + steps * self.step
        return chosen if self.last is None or chosen <= self.last else None


@dataclass(frozen=True, slots=True)
class Fault:
    """What an echo does wrong.

    :ivar name: a key of :data:`ARGUMENTS`.
    :ivar seconds: of ``delay`` and ``freeze``, and between two segments of ``slice``.
    :ivar spread: seconds: half the width of a uniform delay, or the standard deviation of a normal
        one.
    :ivar shape: the distribution of a delay, of :data:`SHAPES`.
    :ivar size: bytes of ``slice``, ``swallow`` (0: the whole message, or one byte), ``truncate``
        and ``pad``; bytes a second of ``throttle``.
    :ivar data: the bytes of ``greet`` and ``insert``.
    :raises TypeError: for an attribute of another type.
    :raises ValueError: for a name that does not exist, or a number out of bounds.
    """

    name: str
    seconds: float = 0.0
    spread: float = 0.0
    shape: str = "constant"
    size: int = 0
    data: bytes = b""

    def __post_init__(self) -> None:
        if self.name not in ARGUMENTS:
            raise ValueError(f"there is no fault {self.name!r}")
        check_number(self.name, self.seconds, 0, LONGEST)
        check_number(f"the spread of {self.name}", self.spread, 0, LONGEST)
        if self.shape not in SHAPES:
            raise ValueError(f"there is no distribution {self.shape!r}")
        least = (
            1 if "size" in ARGUMENTS[self.name] and self.name not in ("swallow", "truncate") else 0
        )
        check_whole(self.name, self.size, least, MAX_SIZE)
        check_type(self.name, self.data, bytes, "bytes")
        if "data" in ARGUMENTS[self.name] and not self.data:
            raise ValueError(f"{self.name} takes at least one byte")

    def delay_of(self, draw: float) -> float:
        """Return the seconds of one delay.

        :param draw: a random number, 0 or more and below 1.
        """
        if self.shape == "uniform":
            return max(0.0, self.seconds + (2 * draw - 1) * self.spread)
        if self.shape == "normal" and draw and self.spread:
            return max(0.0, NormalDist(self.seconds, self.spread).inv_cdf(draw))
        if self.shape == "exponential":
            return -math.log1p(-draw) * self.seconds
        return self.seconds


@dataclass(frozen=True, slots=True)
class When:
    """The conditions of a rule, all of which must hold, and a method for each fault.

    Each condition returns a new object, so conditions can be chained: ``first(2).refuse()``,
    ``every(7, "message", 64).at_most(3).delay(0.2)``.

    :ivar which: the chosen connections or datagrams; ``None``: all.
    :ivar where: the chosen messages or bytes of each connection; ``None``: the whole connection.
    :ivar after_bytes: the fault begins when the reply has this many bytes.
    :ivar after: seconds after the connection was opened (a port of datagrams: after the plan was
        set) at which the fault can begin.
    :ivar lasting: seconds that the fault lasts, from its beginning.
    :ivar window: seconds after the plan was set, between which the fault can begin.
    :ivar times: how often the rule can fire, over all connections; ``None``: no limit.
    :ivar can_be_unused: whether the rule may never fire: :mod:`echod.pytest_plugin` checks it.
    :ivar add: is called with each rule that is made.
    """

    which: Choice | None = None
    where: Choice | None = None
    after_bytes: int | None = None
    after: float = 0.0
    lasting: float = math.inf
    window: tuple[float, float] = (0.0, math.inf)
    times: int | None = None
    can_be_unused: bool = False
    add: Callable[[Rule], object] | None = field(default=None, compare=False, repr=False)

    def _choose(self, choice: Choice) -> When:
        return replace(self, where=choice) if choice.within else replace(self, which=choice)

    def first(self, count: int, unit: str = "", size: int = 1) -> When:
        """Choose the first ``count`` of a unit (:class:`Choice`)."""
        return self._choose(Choice(unit, size, last=count))

    def every(self, step: int, unit: str = "", size: int = 1) -> When:
        """Choose every ``step``-th."""
        return self._choose(Choice(unit, size, first=step, step=step))

    def numbers(self, first: int, last: int, unit: str = "", size: int = 1) -> When:
        """Choose the numbers from ``first`` to ``last``."""
        return self._choose(Choice(unit, size, first, last))

    def chance(self, probability: float, unit: str = "", size: int = 1) -> When:
        """Choose each with a probability, from 0 to 1."""
        return self._choose(Choice(unit, size, chance=probability))

    def from_byte(self, count: int) -> When:
        """Begin when the reply has ``count`` bytes."""
        check_whole("from_byte", count, 0, MAX_SIZE)
        return replace(self, after_bytes=count)

    def from_time(self, seconds: float) -> When:
        """Begin ``seconds`` after the connection was opened."""
        check_number("from_time", seconds, 0, LONGEST)
        return replace(self, after=seconds)

    def lasts(self, seconds: float) -> When:
        """End ``seconds`` after the beginning."""
        check_number("lasts", seconds, 0, LONGEST)
        return replace(self, lasting=seconds)

    def between(self, start: float, end: float) -> When:
        """Begin only between two times, in seconds after the plan was set."""
        check_number("between", start, 0, LONGEST)
        check_number("between", end, start, LONGEST)
        return replace(self, window=(start, end))

    def at_most(self, times: int) -> When:
        """Limit how often the rule fires, over all connections."""
        check_whole("at_most", times, 1, MAX_NUMBER)
        return replace(self, times=times)

    def may_not_fire(self) -> When:
        """Allow that the rule never fires."""
        return replace(self, can_be_unused=True)

    def rule(self, fault: Fault) -> Rule:
        """Return the rule for any ``fault``."""
        rule = Rule(replace(self, add=None), fault)
        if self.add is not None:
            self.add(rule)
        return rule

    # Streams.

    def refuse(self) -> Rule:
        """Reset the connection when it is accepted."""
        return self.rule(Fault("refuse"))

    def reset(self) -> Rule:
        """Reset the connection when the reply up to here was sent."""
        return self.rule(Fault("reset"))

    def close(self) -> Rule:
        """Close the connection with FIN."""
        return self.rule(Fault("close"))

    def half_close(self) -> Rule:
        """Send FIN, and continue to read."""
        return self.rule(Fault("half-close"))

    def silent(self) -> Rule:
        """Read, and do not answer."""
        return self.rule(Fault("silent"))

    def deaf(self) -> Rule:
        """Stop reading."""
        return self.rule(Fault("deaf"))

    def greet(self, data: bytes) -> Rule:
        """Send ``data`` when the connection is opened."""
        return self.rule(Fault("greet", data=data))

    def delay(self, seconds: float, spread: float = 0.0, shape: str = "") -> Rule:
        """Delay the reply by ``seconds``. Later parts of a stream wait for earlier ones.

        :param spread: seconds: half the width of a uniform delay, or the standard deviation of a
            normal one.
        :param shape: ``constant``, ``uniform``, ``normal`` or ``exponential``; by default
            ``uniform`` if there is a spread.
        """
        shape = shape or ("uniform" if spread else "constant")
        return self.rule(Fault("delay", seconds, spread, shape))

    def throttle(self, rate: int) -> Rule:
        """Send at most ``rate`` bytes a second."""
        return self.rule(Fault("throttle", size=rate))

    def freeze(self, seconds: float) -> Rule:
        """Neither read nor send for ``seconds``."""
        return self.rule(Fault("freeze", seconds))

    def slice(self, size: int, seconds: float = 0.0) -> Rule:
        """Send segments of ``size`` bytes, ``seconds`` apart."""
        return self.rule(Fault("slice", seconds, size=size))

    def damage(self) -> Rule:
        """Flip a bit of one byte."""
        return self.rule(Fault("damage"))

    def swallow(self, count: int = 0) -> Rule:
        """Leave out ``count`` bytes; 0: the whole message, or one byte."""
        return self.rule(Fault("swallow", size=count))

    def insert(self, data: bytes) -> Rule:
        """Insert ``data``."""
        return self.rule(Fault("insert", data=data))

    def truncate(self, size: int) -> Rule:
        """Keep ``size`` bytes of the reply, message or datagram."""
        return self.rule(Fault("truncate", size=size))

    # Datagrams.

    def drop(self) -> Rule:
        """Send no reply."""
        return self.rule(Fault("drop"))

    def duplicate(self) -> Rule:
        """Send the reply twice."""
        return self.rule(Fault("duplicate"))

    def reorder(self) -> Rule:
        """Send the reply after that to the next datagram of the same source."""
        return self.rule(Fault("reorder"))

    def pad(self, size: int) -> Rule:
        """Append ``size`` bytes."""
        return self.rule(Fault("pad", size=size))

    # TLS.

    def stall(self) -> Rule:
        """Never answer the handshake."""
        return self.rule(Fault("stall"))

    def abort(self) -> Rule:
        """Reset the connection during the handshake."""
        return self.rule(Fault("abort"))

    def certificate(self, wrong: str) -> Rule:
        """Present a certificate that is ``wrong-name``, ``expired`` or ``self-signed``."""
        return self.rule(Fault(wrong))

    def no_close_notify(self) -> Rule:
        """End with FIN, without TLS's closing alert."""
        return self.rule(Fault("no-close-notify"))

    def old_version(self) -> Rule:
        """Accept TLS 1.1 only."""
        return self.rule(Fault("old-version"))


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, and the fault that happens where they hold."""

    when: When
    fault: Fault


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of a port, in the order in which they apply.

    :ivar rules: each works on the reply as the rules before it have left it.
    :ivar seed: decides what is random; by default chosen at random.
    """

    rules: tuple[Rule, ...] = ()
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(2**32))

    def check(self, serves: str) -> None:
        """Raise ValueError if a port cannot have one of the rules.

        :param serves: :data:`STREAM`, :data:`TLS` or :data:`DATAGRAM`.
        """
        subject = "datagram" if serves == DATAGRAM else "connection"
        for rule in self.rules:
            if rule.fault.name not in ON[serves]:
                raise ValueError(f"{rule.fault.name} is no fault of a {serves} port")
            which = rule.when.which
            if which is not None and which.unit not in ("", subject):
                raise ValueError(f"a {serves} port has no {which.unit}s")
            if serves == DATAGRAM and (rule.when.where or rule.when.after_bytes is not None):
                raise ValueError("a datagram port has neither messages nor places in a stream")


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

    def draw(self, number: int, place: int = 0, purpose: str = "") -> float:
        """Return a random number, 0 or more and below 1: always the same for the same arguments."""
        key = f"{self._seed}/{self._index}/{number - self._skipped}/{place}/{purpose}"
        digest = hashlib.blake2b(key.encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big") / 2**56

    def applies(self, number: int) -> bool:
        """Return whether the rule applies to the connection or datagram ``number``."""
        which = self.rule.when.which
        if which is None:
            return True
        own = number - self._skipped
        return which.next(own) == own and self.draw(number) < which.chance

    def in_window(self, now: float) -> bool:
        """Return whether the rule can fire now."""
        start, end = self.rule.when.window
        return start <= now - self.since < end


class Faults:
    """The state of a plan on one port.

    :param plan: the rules.
    :param now: seconds, by any monotonic clock.
    :param port: the name of the port, for the events.
    :ivar observer: is called with each :class:`~echod.events.Fired`.
    :ivar rules: the rules, and how often each has fired.
    :ivar number: the number of connections or datagrams since the plan was set.
    :ivar firings: the latest firings.
    """

    def __init__(self, plan: Plan, now: float, port: str = "") -> None:
        self.observer: Callable[[Fired], object] = lambda _: None
        self.port = port
        self.firings: deque[Firing] = deque(maxlen=MAX_FIRINGS)
        self.set(plan, now)

    def set(self, plan: Plan, now: float) -> None:
        """Replace the plan. Connections that are open keep the rules that they have."""
        self.plan = Plan((), plan.seed)
        self.rules: list[ActiveRule] = []
        self.since = now
        self.reset()
        self.number = 0
        for rule in plan.rules:
            self.add(rule, now)

    def add(self, rule: Rule, now: float) -> None:
        """Add a rule. Its numbers count connections from now on."""
        index = len(self.rules)
        self.plan = replace(self.plan, rules=(*self.plan.rules, rule))
        self.rules.append(ActiveRule(rule, self.plan.seed, index, self.number, now))

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
            counts[each.rule.fault.name] += each.fired
        return counts

    def next(self) -> tuple[int, Iterator[ActiveRule]]:
        """Count a connection or datagram, and return its number and the rules that apply to it."""
        self.number = number = self.number + 1
        return number, (each for each in self.rules if each.applies(number))

    def fire(self, active: ActiveRule, number: int, offset: int, now: float) -> bool:
        """Count a firing, and return whether it is one: the limit of a rule ends it.

        :param number: of the connection or datagram.
        :param offset: bytes of the reply before the place of the fault.
        """
        times = active.rule.when.times
        if times is not None and active.fired >= times:
            return False
        active.fired += 1
        fired = Fired(active.text, number, offset, self.port)
        self.firings.append(Firing(fired, now - self.since))
        self.observer(fired)
        return True


when: Final = When()
"""No conditions: the start of a rule, as in ``when.first(2).refuse()``."""
