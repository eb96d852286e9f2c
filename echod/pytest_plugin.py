"""pytest plugin: an echo peer with faults for each test of a client; needs the extra ``pytest``.

A rule that never fired fails its test. When a test fails, its report has the peer's rules, firings
and endings. Twisted is imported when a test uses a fixture.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import pytest

if TYPE_CHECKING:
    from echod.peer import EchoPeer

PEERS: Final[pytest.StashKey[list[EchoPeer]]] = pytest.StashKey()
"""The peers of a test."""


def fixture_of(transport: str, name: str) -> Any:
    """Return a fixture: a peer that is stopped when the test has ended.

    The seed depends on the test's name, so that each run draws the same random numbers.
    """

    def peer(request: pytest.FixtureRequest) -> Iterator[EchoPeer]:
        from echod.peer import EchoPeer  # noqa: PLC0415 - imports Twisted

        with EchoPeer(transport, seed=crc32(request.node.nodeid.encode())) as peer:
            request.node.stash.setdefault(PEERS, []).append(peer)
            yield peer

    peer.__doc__ = f"An echo service ({transport}) with the faults that the test adds."
    return pytest.fixture(name=name)(peer)


echo_peer = fixture_of("tcp", "echo_peer")
echo_peer_tls = fixture_of("tls", "echo_peer_tls")
echo_peer_udp = fixture_of("udp", "echo_peer_udp")
echo_peer_unix = fixture_of("unix", "echo_peer_unix")


def peers_of(item: pytest.Item) -> Iterator[EchoPeer]:
    """Yield all peers of a test."""
    for first in item.stash.get(PEERS, []):
        yield from first.peers


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that has passed if a rule has never fired."""
    result = yield
    unused = [rule for peer in peers_of(item) for rule in peer.unused()]
    if unused:
        pytest.fail("\n".join(["never fired:", *unused]), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Add the report of each peer to that of a failed test."""
    report = yield
    if report.failed:
        report.sections += [("echod", peer.report()) for peer in peers_of(item)]
    return report
