"""The pytest plugin: fixtures, the check of each rule, and the report of a failed test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import TIMEOUT
from tests.plugin.clients import resources

pytest_plugins = ["pytester"]

CLIENT = """
import socket

def get(peer, data=b"hello", attempts=3):
    for attempt in range(attempts):
        try:
            with socket.create_connection((peer.host, peer.port), timeout=5) as sock:
                sock.sendall(data)
                return sock.recv(100)
        except ConnectionResetError:
            if attempt == attempts - 1:
                raise
"""


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    """Run ``tests`` in this process, without the reactor of pytest-twisted."""
    pytester.makepyfile(CLIENT + tests)
    return pytester.runpytest_inprocess("-p", "no:twisted", *options)


def test_rule_that_fires(pytester: pytest.Pytester) -> None:
    """A client that retries passes its test, and the counts are exact."""
    result = run(
        pytester,
        """
def test_client(echo_peer):
    echo_peer.first(2).refuse()
    assert get(echo_peer) == b"hello"
    assert echo_peer.counts["refuse"] == 2
    assert [(each.connection, each.offset) for each in echo_peer.firings] == [(1, 0), (2, 0)]
""",
    )
    result.assert_outcomes(passed=1)


def test_rule_that_never_fires(pytester: pytest.Pytester) -> None:
    """A rule that never fired fails the test, and each such rule is named."""
    result = run(
        pytester,
        """
def test_client(echo_peer):
    echo_peer.numbers(5, 5).refuse()
    echo_peer.refuse()
    echo_peer.numbers(7, 7).reset()
    further = echo_peer(transport="udp")
    try:
        get(echo_peer, attempts=1)
    except ConnectionResetError:
        pass
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            "never fired:",
            r"tcp 127.0.0.1:\d+: number 5: refuse",
            r"tcp 127.0.0.1:\d+: number 7: reset",
            "-+ echod -+",
        ],
        consecutive=False,
    )


def test_rule_that_may_not_fire(pytester: pytest.Pytester) -> None:
    """A rule with may_not_fire() need not fire."""
    result = run(
        pytester,
        """
def test_client(echo_peer, echo_peer_udp):
    echo_peer.first(2).may_not_fire().refuse()
    echo_peer_udp.may_not_fire().drop()
""",
    )
    result.assert_outcomes(passed=1)


def test_report_of_a_failed_test(pytester: pytest.Pytester) -> None:
    """The report of a failed test has the address, the seed, the firings and the endings."""
    result = run(
        pytester,
        """
def test_client(echo_peer):
    echo_peer.first(2).at_most(1).refuse()
    get(echo_peer)
    echo_peer.wait_for("finished")
    echo_peer.wait_for("unused", timeout=0.01)
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            "-+ echod -+",
            r"tcp 127.0.0.1:\d+, seed \d+",
            "  firings: 1: first 2, at most 1 times: refuse",
            "  Fired.*rule='first 2, at most 1 times: refuse', connection=1, offset=0.*",
            "  Refused.*Reason.FAULT.*",
            "  Opened.*",
            "  Closed.*Ending.FINISHED.*",
        ],
        consecutive=True,
    )


def test_no_report_of_others(pytester: pytest.Pytester) -> None:
    """A test that passes, is skipped or fails as expected has no report, and no check."""
    result = run(
        pytester,
        """
import pytest

def test_passes(echo_peer):
    get(echo_peer)

def test_skipped(echo_peer):
    echo_peer.refuse()
    pytest.skip()

@pytest.mark.xfail
def test_expected(echo_peer):
    echo_peer.refuse()
""",
        "-rA",
    )
    result.assert_outcomes(passed=1, skipped=1, xfailed=1)
    result.stdout.no_fnmatch_line("* echod *")


def test_unittest(pytester: pytest.Pytester) -> None:
    """The fixtures work in a TestCase: a failure, and a rule that never fired."""
    result = run(
        pytester,
        """
import unittest
import pytest

class Tests(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def peer(self, echo_peer):
        self.peer = echo_peer

    def test_passes(self):
        self.assertEqual(get(self.peer), b"hello")

    def test_fails(self):
        self.peer.refuse()
        self.assertEqual(1, 2)

    def test_unused(self):
        self.peer.reset()
""",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*1 != 2", "never fired:"])


def test_all_fixtures(pytester: pytest.Pytester) -> None:
    """Each fixture is listed with its description, and serves its transport."""
    before = resources()
    result = run(
        pytester,
        """
import ssl

def test_all(echo_peer, echo_peer_tls, echo_peer_udp, echo_peer_unix):
    context = ssl.create_default_context(cafile=echo_peer_tls.ca)
    plain = socket.create_connection((echo_peer_tls.host, echo_peer_tls.port))
    tls = context.wrap_socket(plain, server_hostname="localhost")
    udp = socket.socket(type=socket.SOCK_DGRAM)
    udp.connect((echo_peer_udp.host, echo_peer_udp.port))
    unix = socket.socket(socket.AF_UNIX)
    unix.connect(echo_peer_unix.path)
    for each in (tls, udp, unix):
        each.settimeout(5)
        each.sendall(b"hello")
        assert each.recv(100) == b"hello"
        each.close()
    assert get(echo_peer) == b"hello"
""",
    )
    result.assert_outcomes(passed=1)
    assert resources() == before
    listed = pytester.runpytest_inprocess("-p", "no:twisted", "--fixtures", "-v")
    for name in ("echo_peer", "echo_peer_tls", "echo_peer_udp", "echo_peer_unix"):
        listed.stdout.re_match_lines([f"{name} -- .*"])


def test_same_test_same_seed(pytester: pytest.Pytester) -> None:
    """The seed depends on the test's name alone."""
    tests = """
def test_one(echo_peer, echo_peer_udp):
    peers = echo_peer, echo_peer_udp, echo_peer(transport="unix")
    [seed] = {peer.report().partition("seed ")[2] for peer in peers}
    with open("seeds", "a") as file:
        file.write(seed)

def test_two(echo_peer):
    test_one(echo_peer, echo_peer)
"""
    for _ in range(2):
        run(pytester, tests.replace("seed)", "seed + '\\n')")).assert_outcomes(passed=2)
    one, two, *again = (pytester.path / "seeds").read_text().split()
    assert again == [one, two]
    assert one != two


def test_costs_nothing_unused(tmp_path: Path) -> None:
    """Without a test that uses it, the plugin imports neither Twisted nor the rest of echod."""
    program = """
import sys, pytest
pytest.main(["-q", "--collect-only"])
print([name for name in sys.modules if name.startswith(("twisted", "echod."))])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=tmp_path,
        env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "echod.pytest_plugin"},
    )
    assert ended.stdout.splitlines()[-1] == "['echod.pytest_plugin']", ended.stderr
