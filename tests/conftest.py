"""Hooks for all tests: report leftovers in the test that left them, and list the other tests."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Generator, Iterator

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher

from tests.reactors import settle_all

MORE = """\
These tests show that echod works here. For more, each in an environment of its own:

    tox -e programs     echod and echod-client as processes, beside other programs
    tox -e docs         the documents: they render, and their commands run
    tox -e benchmarks   the short forms of the benchmarks
    tox -e packaging    the wheel, the sdist and the editable install
    tox -e systemd      the units, under a real systemd (as root, on Debian)
    tox -e soak         large figures: memory, descriptors, storms of connections (minutes)

`tox list` describes all environments; .ci/run runs them on a bare Debian."""


@pytest.fixture
def log() -> Iterator[list[LogEvent]]:
    """Return the list of the events that are logged from now on."""
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)
    yield events
    globalLogPublisher.removeObserver(events.append)


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    """Finish what a test began on a reactor before the next test uses the same reactor."""
    yield
    settle_all()


@pytest.fixture(autouse=True, scope="module")
def _collected() -> Iterator[None]:
    """Report a socket that was never closed in the module of the test that opened it.

    The ResourceWarning comes with garbage collection, which may be many tests later. To collect
    after each test would take longer than the tests.
    """
    yield
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Release the sockets of a failed test, which its traceback holds, without a warning."""
    failed = item.session.testsfailed
    result = yield
    if item.session.testsfailed > failed:
        sys.last_type = sys.last_value = sys.last_traceback = None
        # The reactor's greenlet still has the failure in its frame: it has to run once more.
        pytest_twisted.blockon(next_iteration())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return result


def next_iteration() -> Deferred[None]:
    from twisted.internet import reactor  # noqa: PLC0415 - once it is installed

    return deferLater(reactor, 0)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """After the default tests, name the others."""
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS:
        terminalreporter.section("more tests")
        terminalreporter.write_line(MORE)
