"""Faulty ports in the log: their plans at the start, their firings, and the counts at the end."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from echod.daemon.summary import RateLimitedSummary, Reasons
from echod.events import Event, Fired
from echod.faults import ActiveRule, Faults

log = Logger(namespace="echod")


class FaultLog:
    """An observer that logs the firings of faults.

    :param clock: the clock of the summary.
    :param faults: the faults of each port; :meth:`flush` logs their counts.
    :param verbose: log each firing, and no summaries.
    """

    def __init__(
        self, clock: IReactorTime, faults: Sequence[Faults], *, verbose: bool = False
    ) -> None:
        self._faults = faults
        self._verbose = verbose
        self._fired = RateLimitedSummary(clock, log_fired)

    def __call__(self, event: Event) -> None:
        """Log ``event`` if a fault has fired, or count it for the next summary."""
        if not isinstance(event, Fired):
            return
        if not self._verbose:
            self._fired.add(event.rule, event.port)
            return
        log.debug(
            "fault on {port}: {rule}; number {connection}, offset {offset}",
            event="fired",
            port=event.port,
            rule=event.rule,
            connection=event.connection,
            offset=event.offset,
        )

    def flush(self) -> None:
        """Log the pending summary and the counts of all rules: call this at the end."""
        self._fired.flush()
        for faults in self._faults:
            log_counts(faults.port, faults.rules)


def log_plan(faults: Faults) -> None:
    """Log that a port is faulty, and its plan."""
    log.warn(
        "FAULTY {port}: {plan} (seed {seed})",
        event="faulty",
        port=faults.port,
        plan="; ".join(each.text for each in faults.rules) or "no rules",
        seed=faults.plan.seed,
    )


def log_counts(port: str, rules: Sequence[ActiveRule]) -> None:
    """Log how often each rule of a port has fired."""
    for each in rules:
        log.info(
            "{port}: {rule}: firings: {count}",
            event="fault-count",
            port=port,
            rule=each.text,
            count=each.fired,
        )


def log_fired(total: int, reasons: Reasons, port: str) -> None:
    """Log ``total`` firings, the last one on ``port``."""
    log.info(
        "1 fault: {reasons}, on {port}"
        if total == 1
        else "{total} faults: {reasons}, the last on {port}",
        event="faults",
        port=port,
        total=total,
        reasons=reasons,
    )
