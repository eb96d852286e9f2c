"""Run every scenario inside the booted system, and write down what happened.

A scenario returns facts, and judges nothing: tests/systemd/test_units.py reads them from
``/guest/facts.json``. The programs in the booted system have the standard library only.
"""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable
from importlib import import_module

from system import (
    HERE,
    LIMIT,
    SCENARIOS,
    Facts,
    first_echo,
    journal,
    messages,
    now,
    systemctl,
)

MODULES = ("lifecycle", "sandbox", "configuration", "certificates", "shutdown")
"""The modules with scenarios, which run in this order."""


def facts_of(name: str, function: Callable[[], Facts]) -> Facts:
    """Return the facts of one scenario, or its error."""
    since, began = now(), time.monotonic()
    signal.alarm(LIMIT)
    try:
        if name != "activation":  # it starts the socket; the others may follow a failure
            systemctl("reset-failed", "echod*")
            systemctl("start", "echod.socket")
            first_echo()
        facts = function()
    except Exception:
        lines = messages(journal("--unit=echod*", "--lines=60", since=since))
        facts = {"error": traceback.format_exc() + "\n".join(lines)}
    signal.alarm(0)
    took = time.monotonic() - began
    print(f"{name}: {took:.1f} s", flush=True)
    return {**facts, "took altogether": took}


def give_up(*_: object) -> None:
    raise TimeoutError(f"the scenario takes more than {LIMIT} s")


def main() -> None:
    signal.signal(signal.SIGALRM, give_up)
    for module in MODULES:
        import_module(module)
    facts: dict[str, Facts] = {}
    for name, function in SCENARIOS.items():
        facts[name] = facts_of(name, function)
        (HERE / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
