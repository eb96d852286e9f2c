"""Plans of faults: rules that say when an echo misbehaves, and how.

A :class:`Plan` has rules. A :class:`Rule` has conditions (:class:`When`) and one :class:`Fault`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from decimal import Context, Decimal
from statistics import NormalDist
from typing import Any, Final, TypeVar

from echod.arguments import check_number, check_type, check_whole
from echod.durations import LONGEST
from echod.faulterrors import PlanError

STREAM: Final = "stream"
TLS: Final = "tls"
NON_CA_TLS: Final = "non-CA tls"
DATAGRAM: Final = "datagram"
"""What a port serves: plain stream sockets, TLS with a certificate that can issue others
(CA:TRUE), TLS with any other certificate, or datagrams."""

OF_TLS: Final = (
    *("stall", "abort", "wrong-name", "expired", "self-signed"),
    *("no-close-notify", "old-version"),
)
ARGUMENTS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("refuse", "reset", "close", "half-close", "silent", "deaf", "damage"), ()),
    **dict.fromkeys(("drop", "duplicate", "reorder", *OF_TLS), ()),
    **dict.fromkeys(("greet", "insert"), ("data",)),
    **dict.fromkeys(("throttle", "truncate", "pad", "swallow"), ("size",)),
    "delay": ("seconds", "spread", "shape"),
    "freeze": ("seconds",),
    "slice": ("size", "seconds"),
}
"""The name of each fault, and the attributes of :class:`Fault` that it uses."""

OF_DATAGRAMS: Final = ("drop", "duplicate", "reorder", "delay", "damage", "truncate", "pad")
OF_STREAMS: Final = tuple(
    name for name in ARGUMENTS if name not in (*OF_TLS, "drop", "duplicate", "reorder", "pad")
)
"""The names of the faults of datagrams, and of all streams; those of TLS alone: ``OF_TLS``."""

AT_ACCEPT: Final = ("refuse", *OF_TLS)
"""The faults that happen before the first byte of a connection, or outside its reply."""

ISSUED: Final = ("wrong-name", "expired")
"""The faults whose certificates are issued by that of the port."""

ON: Final = {
    STREAM: OF_STREAMS,
    TLS: (*OF_STREAMS, *OF_TLS),
    NON_CA_TLS: (*OF_STREAMS, *(name for name in OF_TLS if name not in ISSUED)),
    DATAGRAM: OF_DATAGRAMS,
}
"""The faults that each kind of port can have."""

SHAPES: Final = ("constant", "uniform", "normal", "exponential")

MAX_SIZE: Final = 1 << 30
"""Bytes: the highest size, position or rate."""

MAX_RULES: Final = 200
"""Rules of a plan. Each is checked for each connection, and has a line in the metrics."""

MAX_NUMBER: Final = 10**12
"""The highest number of a connection, message, byte or firing, and the highest seed."""

_EXACT: Final = Context(prec=50)  # the thread's own context may round


def _decimal(value: float, shift: int = 0) -> str:
    """Return ``value`` times ten to the power of ``shift``, exactly, without an exponent."""
    return f"{Decimal(repr(abs(float(value)))).scaleb(shift, _EXACT).normalize(_EXACT):f}"


def _duration(seconds: float) -> str:
    return f"{_decimal(seconds, 3)}ms" if 0 < seconds < 1 else f"{_decimal(seconds)}s"


@dataclass(frozen=True, slots=True)
class Choice:
    """Connections, datagrams, messages or bytes, chosen by their number, from 1.

    It chooses each number from ``first`` to ``last`` that is a multiple of ``step``.

    :ivar unit: ``connection``, ``datagram``, ``message`` or ``byte``; empty: what the port serves,
        connections or datagrams.
    :ivar size: bytes of a message; 1 for other units.
    :ivar first: the lowest number that can be chosen.
    :ivar last: the highest number that can be chosen; ``None``: there is none.
    :ivar step: a divisor of all chosen numbers.
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
        check_number("chance", self.chance, 0, 1, "")

    @property
    def within(self) -> bool:
        """Whether it chooses places within one stream, and not connections or datagrams."""
        return self.unit in ("message", "byte")

    def next(self, number: int) -> int | None:
        """Return the lowest chosen number from ``number`` on, whatever its probability."""
        chosen = -(-max(number, self.first) // self.step) * self.step
        return chosen if self.last is None or chosen <= self.last else None

    def __str__(self) -> str:
        """Return the conditions as text: for instance ``first 9, every 3rd``."""
        of = f" of {self.size}" if self.unit == "message" else ""
        unit = self.unit or "number"
        one, many = (f" {unit}{of}", f" {unit}s{of}") if self.unit else ("", "")
        texts = []
        if self.first == self.last:
            texts.append(f"{unit} {self.first}{of}")
        elif self.first > 1:
            last = f" to {self.last}" if self.last is not None else ""
            texts.append(f"{unit}s {'' if last else 'from '}{self.first}{last}{of}")
        elif self.last is not None:
            texts.append(f"first {self.last}{many}")
        if self.step > 1:
            teen = self.step % 100 in (11, 12, 13)
            suffix = {1: "st", 2: "nd", 3: "rd"}.get(0 if teen else self.step % 10, "th")
            texts.append(f"every {self.step}{suffix}{one}")
        if self.chance < 1:
            texts.append(f"{_decimal(self.chance, 2)}%" + (many and f" of{many}"))
        return ", ".join(texts) or f"every {unit}{of}"


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
        least = int(self.name in ("throttle", "slice", "pad"))
        check_whole(self.name, self.size, least, MAX_SIZE)
        check_type(self.name, self.data, bytes, "bytes")
        if "data" in ARGUMENTS[self.name] and not self.data:
            raise ValueError(f"{self.name} takes at least one byte")
        if self.spread and self.shape not in ("uniform", "normal"):
            raise ValueError(f"a delay that is {self.shape} has no spread")
        for each in fields(self)[1:]:
            if each.name not in ARGUMENTS[self.name] and getattr(self, each.name) != each.default:
                raise ValueError(f"{self.name} takes no {each.name}")

    def __str__(self) -> str:
        """Return the fault as text: for instance ``slice 10 bytes every 5ms``."""
        words = [self.name]
        if self.shape in ("normal", "exponential"):
            words.append(self.shape)
        if self.name == "throttle":
            words.append(f"{self.size}B/s")
        elif self.size or self.name == "truncate":
            words.append(f"{self.size} bytes")
        if self.seconds or self.name in ("delay", "freeze"):
            words += ["every"] * (self.name == "slice") + [_duration(self.seconds)]
        if self.shape in ("uniform", "normal"):
            words += ["+-"] * (self.shape == "uniform") + [_duration(self.spread)]
        if self.data:
            escaped = self.data.decode("latin-1").encode("unicode_escape").decode()
            words.append('"{}"'.format(escaped.replace('"', r"\"")))
        return " ".join(words)

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


def _builder(name: str) -> Callable[[When], Rule]:
    return lambda when: when.rule(Fault(name))


@dataclass(frozen=True, slots=True)
class When:
    """The conditions of a rule, all of which must hold, and a method for each fault.

    Each condition returns a new object, so conditions can be chained: ``first(2).refuse()``,
    ``every(7, "message", 64).at_most(3).delay(0.2)``. A condition that is given twice raises
    ValueError.

    :ivar which: the chosen connections or datagrams; ``None``: all.
    :ivar where: the chosen messages or bytes of each connection; ``None``: the whole connection.
    :ivar after_bytes: the fault begins when the reply has this many bytes.
    :ivar after_seconds: seconds after the connection was opened (datagrams: after the plan was
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
    after_seconds: float = 0.0
    lasting: float = math.inf
    window: tuple[float, float] = (0.0, math.inf)
    times: int | None = None
    can_be_unused: bool = False
    add: Callable[[Rule], object] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.where is not None and self.after_bytes is not None:
            raise ValueError("a rule has one place: messages, bytes, or after a number of bytes")

    def _choose(self, unit: str, size: int, **limits: float | None) -> When:
        if unit == "message" and not size:
            raise ValueError("a message needs its size in bytes, as in first(2, 'message', 64)")
        blank = Choice(unit, size or 1)
        old = (self.where if blank.within else self.which) or blank
        if (unit and old.unit not in ("", unit)) or old.size != blank.size:
            raise ValueError("a rule chooses messages of one size, or bytes, or connections")
        new = _add(replace(old, unit=old.unit or unit), **limits)
        return replace(self, where=new) if new.within else replace(self, which=new)

    def first(self, count: int, unit: str = "", size: int = 0) -> When:
        """Choose the first ``count`` of a unit (:class:`Choice`); a message needs its size."""
        check_whole("first", count, 1, MAX_NUMBER)
        return self._choose(unit, size, last=count)

    def every(self, step: int = 1, unit: str = "", size: int = 0) -> When:
        """Choose every ``step``-th."""
        return self._choose(unit, size, step=step)

    def number(self, number: int, unit: str = "", size: int = 0) -> When:
        """Choose one number."""
        return self.numbers(number, number, unit, size)

    def numbers(self, first: int, last: int | None = None, unit: str = "", size: int = 0) -> When:
        """Choose the numbers from ``first`` to ``last``; ``None``: all from ``first`` on."""
        return self._choose(unit, size, first=first, last=last)

    def chance(self, probability: float, unit: str = "", size: int = 0) -> When:
        """Choose each with a probability, from 0 to 1."""
        return self._choose(unit, size, chance=probability)

    def from_byte(self, count: int) -> When:
        """Begin when the reply has ``count`` bytes."""
        check_whole("from_byte", count, 0, MAX_SIZE)
        return _add(self, after_bytes=count)

    def from_time(self, seconds: float) -> When:
        """Begin ``seconds`` after the connection was opened."""
        check_number("from_time", seconds, 0, LONGEST)
        return _add(self, after_seconds=seconds)

    def lasts(self, seconds: float) -> When:
        """End ``seconds`` after the beginning."""
        check_number("lasts", seconds, 0, LONGEST)
        return _add(self, lasting=seconds)

    def between(self, start: float, end: float) -> When:
        """Begin only between two times, in seconds after the plan was set."""
        check_number("between", start, 0, LONGEST)
        check_number("between", end, start, LONGEST)
        return _add(self, window=(start, end))

    def at_most(self, times: int) -> When:
        """Limit how often the rule fires, over all connections."""
        check_whole("at_most", times, 1, MAX_NUMBER)
        return _add(self, times=times)

    def may_not_fire(self) -> When:
        """Allow that the rule never fires."""
        return _add(self, can_be_unused=True)

    def __str__(self) -> str:
        """Return the conditions as text: for instance ``first 2, after 64 bytes``."""
        texts = [str(choice) for choice in (self.which, self.where) if choice is not None]
        if self.after_bytes is not None:
            texts.append(f"after {self.after_bytes} bytes")
        if self.after_seconds:
            texts.append(f"after {_duration(self.after_seconds)}")
        if self.lasting < math.inf:
            texts.append(f"for {_duration(self.lasting)}")
        if self.window != (0.0, math.inf):
            texts.append("from {} to {}".format(*map(_duration, self.window)))
        if self.times is not None:
            texts.append(f"at most {self.times} times")
        return ", ".join([*texts, "may not fire"] if self.can_be_unused else texts)

    def rule(self, fault: Fault) -> Rule:
        """Return the rule for any ``fault``."""
        rule = Rule(replace(self, add=None), fault)
        if self.add is not None:
            self.add(rule)
        return rule

    # Streams.

    refuse = _builder("refuse")
    """Reset the connection when it is accepted."""

    reset = _builder("reset")
    """Reset the connection after the reply before this place was delivered."""

    close = _builder("close")
    """Close the connection with FIN."""

    half_close = _builder("half-close")
    """Send FIN, and continue to read."""

    silent = _builder("silent")
    """Read, and do not answer."""

    deaf = _builder("deaf")
    """Stop reading."""

    def greet(self, data: bytes) -> Rule:
        """Send ``data`` when the connection is opened."""
        return self.rule(Fault("greet", data=data))

    def delay(self, seconds: float, spread: float = 0.0, shape: str = "") -> Rule:
        """Delay the reply by ``seconds``. Later parts of a stream wait for earlier ones.

        A random delay is drawn for each chosen message, otherwise for each receive.

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

    damage = _builder("damage")
    """Invert the lowest bit of one byte."""

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

    drop = _builder("drop")
    """Send no reply."""

    duplicate = _builder("duplicate")
    """Send the reply twice."""

    reorder = _builder("reorder")
    """Send the reply after that to the next datagram of the same source."""

    def pad(self, size: int) -> Rule:
        """Append ``size`` bytes."""
        return self.rule(Fault("pad", size=size))

    # TLS.

    stall = _builder("stall")
    """Never answer the handshake."""

    abort = _builder("abort")
    """Reset the connection during the handshake."""

    def certificate(self, wrong: str) -> Rule:
        """Present a certificate that is ``wrong-name``, ``expired`` or ``self-signed``."""
        return self.rule(Fault(wrong))

    no_close_notify = _builder("no-close-notify")
    """End with FIN, without TLS's closing alert."""

    old_version = _builder("old-version")
    """Accept TLS 1.1 only."""


_Conditions = TypeVar("_Conditions", When, Choice)


def _add(conditions: _Conditions, **changes: Any) -> _Conditions:
    """Return ``conditions`` with ``changes``, each of which it does not have yet."""
    for each in fields(conditions):
        if each.name in changes and getattr(conditions, each.name) != each.default:
            raise ValueError("a rule has each condition once")
    return replace(conditions, **changes)


@dataclass(frozen=True, slots=True)
class Rule:
    """Conditions, and the fault that happens where they hold."""

    when: When
    fault: Fault

    def __str__(self) -> str:
        """Return the text from which :func:`~echod.faultgrammar.parse_plan` makes this rule."""
        conditions = str(self.when)
        return f"{conditions}: {self.fault}" if conditions else str(self.fault)


@dataclass(frozen=True, slots=True)
class Plan:
    """The rules of a port, in the order in which they apply.

    :ivar rules: each works on the reply as the rules before it have left it.
    :ivar seed: decides what is random, from 0 to :data:`MAX_NUMBER`; by default chosen at random.
    :raises TypeError: for a seed that is no int, or rules that are no tuple of rules.
    :raises ValueError: for a seed out of bounds, or more than :data:`MAX_RULES` rules.
    """

    rules: tuple[Rule, ...] = ()
    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(2**32))

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0, MAX_NUMBER)
        check_type("rules", self.rules, tuple, "a tuple of rules")
        for rule in self.rules:
            check_type("rules", rule, Rule, "a tuple of rules, each with a fault")
        if len(self.rules) > MAX_RULES:
            raise ValueError(f"a plan has at most {MAX_RULES} rules")

    def __str__(self) -> str:
        """Return the text from which :func:`~echod.faultgrammar.parse_plan` makes this plan."""
        return "; ".join([*map(str, self.rules), f"seed {self.seed}"])

    def check(self, serves: str) -> None:
        """Check that a port can have the rules.

        :param serves: a key of :data:`ON`.
        :raises PlanError: for a rule that it cannot have.
        """
        for rule in self.rules:
            name = rule.fault.name
            if name not in ON[serves]:
                kind = next(kind for kind, names in ON.items() if name in names)
                why = f"{name} is a fault of {kind} ports, not of {serves} ports"
                if serves == NON_CA_TLS and name in ISSUED:
                    why = f"{name} needs a certificate that can issue others (CA:TRUE)"
                raise PlanError(str(rule), len(str(rule)) - len(str(rule.fault)), why)
            if wrong := _wrong_condition(rule, serves):
                raise PlanError(str(rule), 0, wrong)


def _wrong_condition(rule: Rule, serves: str) -> str:
    """Return what is wrong with the conditions of ``rule`` on a port; empty: nothing."""
    when, name = rule.when, rule.fault.name
    if when.which is not None:
        subject = "datagram" if serves == DATAGRAM else "connection"
        if when.which.unit not in ("", subject):
            return f"a {serves} port has no {when.which.unit}s"
    if serves == DATAGRAM and (when.where or when.after_bytes is not None):
        return "a datagram port has neither messages nor places in a stream"
    if serves == DATAGRAM and when.lasting < math.inf:
        return "a fault of a datagram has no duration"
    if name in AT_ACCEPT and when != replace(
        when, where=None, after_bytes=None, after_seconds=0.0, lasting=math.inf
    ):
        return f"{name} happens at accept: it has no message, byte, 'after' or 'for'"
    return ""


when: Final = When()
"""No conditions: the start of a rule, as in ``when.first(2).refuse()``."""
