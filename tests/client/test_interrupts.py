"""Signals during a run of echod-client."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from echod.client.runner import handled

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


def act(action: Callable[[], object]) -> None:
    action()


def each(action: Callable[[], object]) -> dict[signal.Signals, Callable[[], object]]:
    """Return ``action`` for each signal."""
    return dict.fromkeys(SIGNALS, action)


NONE = each(lambda: pytest.fail("was called"))


@contextmanager
def answered_by(handler: signal.Handlers) -> Iterator[None]:
    """Install ``handler`` for all signals, until the end of the context.

    This cannot be a fixture: pytest-twisted may start its reactor, which installs handlers, after
    a fixture.
    """
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, each in zip(SIGNALS, before, strict=True):
            signal.signal(number, each)


@pytest.mark.parametrize("number", SIGNALS)
def test_stop(number: signal.Signals) -> None:
    """A signal stops a run that has begun; the default action is restored at the end."""
    stopped: list[int] = []
    with answered_by(signal.SIG_DFL):
        with handled(lambda: True, each(lambda: stopped.append(1)), act):
            signal.raise_signal(number)
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_DFL
    assert stopped == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_kill(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the run begins, a signal is raised again with its default action, which kills."""
    raised: list[tuple[int, object]] = []
    send = signal.raise_signal
    monkeypatch.setattr(
        "signal.raise_signal", lambda each: raised.append((each, signal.getsignal(each)))
    )
    with answered_by(signal.SIG_DFL), handled(lambda: False, NONE, act):
        send(number)
    assert raised == [(number, signal.SIG_DFL)]


def test_nothing_to_print() -> None:
    """Before the run begins, SIGQUIT is ignored: it does not end a process that connects."""
    with answered_by(signal.SIG_DFL), handled(lambda: False, NONE, act):
        signal.raise_signal(signal.SIGQUIT)


def test_continue() -> None:
    """A handler for SIGCONT is installed during the run: it interrupts select(2) after a stop."""
    with handled(lambda: False, {}, act):
        assert callable(signal.getsignal(signal.SIGCONT))
        signal.raise_signal(signal.SIGCONT)
    assert signal.getsignal(signal.SIGCONT) == signal.SIG_DFL


@pytest.mark.parametrize("number", SIGNALS)
def test_ignored(number: signal.Signals) -> None:
    """A signal that is ignored already stays ignored, as for a command behind ``&`` in a script."""
    with answered_by(signal.SIG_IGN):
        with handled(lambda: True, NONE, act):
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
