"""Signals during a run of echod-client."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from echod.client.interrupts import SIGNALS, handled


@contextmanager
def answered_by(handler: signal.Handlers) -> Iterator[None]:
    """Have ``handler`` for both signals for a while.

    No fixture does so: pytest-twisted may start its reactor after that, with handlers of its own.
    """
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, each in zip(SIGNALS, before, strict=True):
            signal.signal(number, each)


@pytest.mark.parametrize("number", SIGNALS)
def test_stop(number: signal.Signals) -> None:
    """Once a run has begun, each signal stops it, and the end has its default action again."""
    stopped: list[int] = []
    with answered_by(signal.SIG_DFL):
        with handled(lambda: True, lambda: stopped.append(1)):
            signal.raise_signal(number)
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    assert stopped == [1, 1]


@pytest.mark.parametrize("number", SIGNALS)
def test_die(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, it kills the process: the default action is back when it is raised again."""
    raised: list[tuple[int, object]] = []
    send = signal.raise_signal
    monkeypatch.setattr(
        "signal.raise_signal", lambda each: raised.append((each, signal.getsignal(each)))
    )
    with answered_by(signal.SIG_DFL), handled(lambda: False, lambda: pytest.fail("was stopped")):
        send(number)
    assert raised == [(number, signal.SIG_DFL)]


def test_continue() -> None:
    """After a stop, select(2) is interrupted: there is a handler, while the run lasts."""
    with handled(lambda: False, lambda: None):
        assert callable(signal.getsignal(signal.SIGCONT))
        signal.raise_signal(signal.SIGCONT)
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_ignored(number: signal.Signals) -> None:
    """One that the shell has it ignore stays ignored: a command behind ``&`` in a script."""
    with answered_by(signal.SIG_IGN):
        with handled(lambda: True, lambda: pytest.fail("was stopped")):
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
