"""``load --find-rate``: run loads at the rates of a search, up to the highest that holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from echod.client.load import Load
from echod.client.report import SLOW, Result, common, load_result
from echod.client.search import WRONG_COUNTS, Bound, RateSearch, faults

STEP: Final = (
    *("asked_messages_per_second", "sent_messages_per_second", "messages_per_second"),
    *("duration_seconds", "sent", "received", *WRONG_COUNTS, "errors", "latency_seconds"),
    *("dropped_here", "scheduling_error_seconds"),
)
"""The values of a load's record that the record of its step keeps."""


class FindRate:
    """One run of ``load --find-rate``.

    :param make: returns a load at a rate, in messages a second.
    :param on_step: called with the record of each step.
    :ivar load: the present load.
    :ivar limited: why the client limited the last step; "" if it did not.
    """

    def __init__(
        self,
        make: Callable[[float], Load],
        search: RateSearch,
        bound: Bound,
        on_step: Callable[[Result], None],
    ) -> None:
        self.search, self.bound = search, bound
        self.failure = self.limited = ""
        self.steps: list[Result] = []
        self._make, self._on_step = make, on_step
        self._earlier = 0  # messages of the steps before this one
        self.load = make(search.first)
        self.connector = self.load.connector

    @property
    def sent(self) -> int:
        """Messages sent in all steps."""
        return self._earlier + self.load.sent

    async def run(self) -> None:
        """Run loads until the search ends, or the client is too slow for a rate."""
        counted = self.connector.errors  # by each load; here, of one step at a time
        errors = Counter[str]()
        while True:
            await self.load.run()
            self.failure = self.load.failure
            if not (self.load.stopped or self.failure):
                self._add(load_result(self.load))
            errors += counted
            counted.clear()
            rate = self.search.next
            if self.load.stopped or self.failure or self.limited or rate is None:
                break
            self._earlier = self.sent
            self.load = self._make(rate)
        counted.update(errors)

    def stop(self) -> None:
        """End the search now, without the present step."""
        self.load.stop()

    def _add(self, record: Result) -> None:
        asked = record["asked_messages_per_second"]
        wrong, limit = faults(record), record["client_bottleneck"] or ""
        why = wrong or self.bound.excess(record)
        is_sent = record["sent_messages_per_second"] >= SLOW * asked
        holds = is_sent and not why and not record["dropped_here"]
        if limit and not wrong and not holds:
            why = self.limited = limit
        else:
            self.search.add(asked, holds)
        step = {**{name: record[name] for name in STEP}, "holds": holds, "excess": why or None}
        self.steps.append(step)
        self._on_step(step)


def find_rate_result(run: FindRate) -> Result:
    """Return the record of a search."""
    search, load = run.search, run.load
    is_over = search.next is None  # no step was stopped, failed, or limited by the client
    return {
        **common("find-rate", run, is_over and bool(search.holding)),
        "size_bytes": load.size,
        "connections": load.workload.connections,
        "bound_percentile": run.bound.percentile,
        "bound_seconds": run.bound.seconds,
        "highest": _runs(search, search.holding),
        "failing": _runs(search, search.failing),
        "client_was_bottleneck": bool(run.limited),
        "client_bottleneck": run.limited or None,
        "steps": run.steps,
    }


def _runs(search: RateSearch, rate: float | None) -> Result | None:
    if rate is None:
        return None
    runs = search.runs[rate]
    return {"messages_per_second": rate, "runs": len(runs), "held": sum(runs)}
