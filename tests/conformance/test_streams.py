"""Conformance: the behaviour that a peer can rely on, over each kind of stream.

In memory, TCP, UNIX, TLS, and behind a proxy. The same tests run over the in-memory network of
:mod:`echod.testing` and over kernel sockets, which shows that the former behaves like the latter.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet.defer import gatherResults
from twisted.internet.task import Clock

from echod.client.protocol import EchoClientFactory, EchoIncomplete, EchoMismatch
from echod.events import Accepted, Closed, Ending, HalfClosed, HandshakeDone, Opened, Reason
from echod.faultplan import Plan
from echod.protocol import MAX_BUFFERED
from echod.timeouts import FIRST_BYTE
from echod.transport import unsent
from tests import TIMEOUT
from tests.reactors import REACTORS
from tests.streams.memory import MemoryEndpoints
from tests.streams.proxy import ProxyEndpoints
from tests.streams.server import EchoServer, Peers
from tests.streams.sockets import TCP4Endpoints, TCP6Endpoints, UNIXEndpoints
from tests.streams.tls import TLSEndpoints

MIB = 1 << 20

run = pytest_twisted.ensureDeferred


KINDS = [
    (MemoryEndpoints, {}),
    *(
        (TCP4Endpoints, {"kind": kind, "fast_path": fast})
        for kind in REACTORS
        for fast in (True, False)
    ),
    *(
        (ends, {"fast_path": fast})
        for ends in (TCP6Endpoints, UNIXEndpoints)
        for fast in (True, False)
    ),
    *((TCP4Endpoints, {"kind": kind, "deferred": True}) for kind in REACTORS),
    *((ends, {"deferred": True}) for ends in (TCP6Endpoints, UNIXEndpoints)),
    *((TLSEndpoints, {"kind": kind}) for kind in REACTORS),
    (TLSEndpoints, {"kind": "epoll", "version": SSL.TLS1_2_VERSION}),
    *(
        (ProxyEndpoints, {"version": each, "fast_path": fast})
        for each in (1, 2)
        for fast in (True, False)
    ),
    *((ProxyEndpoints, {"version": 2, "kind": kind}) for kind in REACTORS if kind != "epoll"),
    # A port without a rule behaves like any other, on the path that a faulty one takes.
    *(
        (ends, {"plan": Plan()})
        for ends in (MemoryEndpoints, TCP4Endpoints, UNIXEndpoints, TLSEndpoints)
    ),
    (ProxyEndpoints, {"version": 2, "plan": Plan()}),
]


@pytest.fixture(
    params=KINDS,
    ids=lambda kind: "-".join(
        [
            kind[0].__name__,
            *("faulty" if name == "plan" else str(value) for name, value in kind[1].items()),
        ]
    ),
)
def ends(request: pytest.FixtureRequest) -> Any:
    kind, options = request.param
    made = kind(**{name: value for name, value in options.items() if name != "plan"})
    made.plan = options.get("plan")
    return made


@pytest_twisted.async_yield_fixture
async def serve(ends: Any) -> AsyncIterator[Any]:
    """A function that starts a service with the given options of the factory."""
    started: list[EchoServer] = []

    async def start(**options: Any) -> EchoServer:
        served = EchoServer(ends, ends.plan, **options)
        await ends.listen(served.factory)
        started.append(served)
        return served

    yield start
    for served in started:
        await served.close()
    await ends.stop()


@run
async def test_every_byte_is_echoed(serve: Any, ends: Any) -> None:
    """All bytes are echoed in order, whatever the sizes of the sends."""
    peer = await (await serve()).peer()
    chance = random.Random(862)
    sent = b""
    for size in (1, 0, 2, 64 * 1024, 64 * 1024 + 1, 3, MIB):
        part = chance.randbytes(size)
        peer.send(part)
        sent += part
    await ends.until(peer.when_received(len(sent)))
    assert peer.received == sent
    assert peer.ended is None


@run
async def test_half_close_at_once(serve: Any, ends: Any) -> None:
    """A peer that sends 6 bytes and half-closes at once receives them, then FIN."""
    served = await serve()
    peer = await served.peer()
    peer.send(b"hello\n")
    peer.finish()
    await ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (b"hello\n", "FIN")
    await served.settled(lambda: served.events.endings == [Ending.FINISHED])
    assert served.events.closed[0].bytes == 6
    assert served.events.closed[0].unsent == 0


@run
async def test_half_close_without_a_byte(serve: Any, ends: Any) -> None:
    """A peer that half-closes without a byte receives FIN."""
    peer = await (await serve()).peer()
    peer.finish()
    await ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (b"", "FIN")


@run
async def test_half_close_with_much_unsent(serve: Any, ends: Any) -> None:
    """After a half-close everything is delivered, even if the peer reads late."""
    served = await serve()
    peer = await served.peer()
    sent = random.Random(862).randbytes(8 * MIB)
    peer.stall()
    peer.send(sent)
    peer.finish()
    await ends.turn()
    peer.resume()
    await ends.until(peer.when_ended())
    assert peer.ended == "FIN"
    assert peer.received == sent
    await ends.advance(1)  # until the kernel's send queue is checked
    await served.settled(lambda: served.events.endings == [Ending.FINISHED])


@run
async def test_urgent_data(serve: Any, ends: Any) -> None:
    """Urgent data is echoed in order, as any other byte: by itself, and before the end."""
    peer = await (await serve()).peer()
    for count in (1, 2, 3):
        ends.send_urgent(peer, b"abc")
        await ends.until(peer.when_received(3 * count))
    ends.send_urgent(peer, b"def")
    ends.send_unseen(peer, b"ghi")
    ends.send_urgent(peer, b"j")
    peer.finish()
    await ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (b"abc" * 3 + b"defghij", "FIN")


@run
async def test_client_of_urgent_replies(ends: Any) -> None:
    """The client treats urgent data of the service as a part of the reply."""
    service = Peers()
    await ends.listen(service)
    client = await ends.connect(EchoClientFactory(ends.clock))
    reply = client.echo(b"abcdef")
    while not service.peers:
        await ends.turn()
    [peer] = service.peers
    await ends.until(peer.when_received(6))
    await ends.turn()  # so that the session tickets of TLS are sent first
    ends.send_urgent(peer, b"abc")
    ends.send_urgent(peer, b"def")
    assert await ends.until(reply) == b"abcdef"
    closed = client.close()
    await ends.until(peer.when_ended())
    await ends.until(closed)
    await ends.stop()


@run
async def test_back_pressure(serve: Any, ends: Any) -> None:
    """At most 256 KiB are buffered for a peer that does not read.

    Another peer is served meanwhile. When the first reads, it receives everything.
    """
    served = await serve()
    flood = await served.peer()
    [echo] = served.factory.connections
    sent = random.Random(862).randbytes(16 * MIB)
    flood.stall()
    flood.send(sent)
    neighbour = await served.peer()
    most = count = 0
    deadline = time.monotonic() + TIMEOUT  # on a busy machine, the kernel's buffers fill slowly
    while count < 200 or (most == 0 and time.monotonic() < deadline):
        count += 1
        neighbour.send(b"?")
        await ends.until(neighbour.when_received(count))
        most = max(most, unsent(echo.transport))
    assert 0 < most < MAX_BUFFERED
    assert echo.received < len(sent)
    flood.resume()
    await ends.until(flood.when_received(len(sent)))
    assert flood.received == sent


@run
async def test_reset_by_the_peer(serve: Any, ends: Any) -> None:
    """A reset during a transfer ends that connection as lost, and no other."""
    served = await serve()
    peer, neighbour = await served.peer(), await served.peer()
    peer.stall()
    peer.send(bytes(16 * MIB))
    await ends.turn()
    peer.abort()
    await served.settled(lambda: served.events.endings == [Ending.LOST])
    assert served.events.closed[0].unsent <= served.events.closed[0].bytes
    neighbour.send(b"still here")
    await ends.until(neighbour.when_received(10))
    assert neighbour.received == b"still here"


@run
@pytest.mark.parametrize("leave", ["finish", "abort"])
async def test_health_check(serve: Any, ends: Any, leave: str) -> None:
    """A connection that the peer ends without a byte is unused, with FIN or RST."""
    served = await serve()
    peer = await served.peer()
    getattr(peer, leave)()
    await served.settled(lambda: served.events.endings == [Ending.UNUSED])
    assert [type(event) for event in served.events] == [Opened, Closed]
    assert (served.events.closed[0].bytes, served.events.closed[0].unsent) == (0, 0)


@run
async def test_opened_then_closed(serve: Any, ends: Any) -> None:
    """Opened has the peer's address, and Closed the duration too."""
    served = await serve()
    peer = await served.peer()
    await ends.advance(1.5)
    peer.finish()
    await served.settled(lambda: len(served.events) == 2)
    opened, closed = served.events
    assert isinstance(opened, Opened)
    assert isinstance(closed, Closed)
    assert closed.peer == opened.peer
    assert closed.seconds == pytest.approx(1.5)
    assert served.factory.connections == set()


@run
async def test_verbose(serve: Any, ends: Any) -> None:
    """If verbose, the observer is notified of each step in order, with the client's address."""
    served = await serve(verbose=True)
    peer = await served.peer()
    peer.send(b"hello")
    await ends.until(peer.when_received(5))
    assert isinstance(served.events[-1], Opened)  # all steps before it are notified
    peer.finish()
    await served.settled(lambda: served.events.endings == [Ending.FINISHED])
    accepted, *begun, opened, half_closed, closed = served.events
    assert isinstance(accepted, Accepted)
    assert [type(event) for event in begun] == ends.begins_with
    assert half_closed == HalfClosed(5, opened.peer, opened.tls)
    tls = HandshakeDone in ends.begins_with
    assert [event.tls for event in (accepted, opened, closed)] == [tls] * 3
    assert all(event.peer == opened.peer for event in (*begun, closed))


@run
async def test_too_many_connections(serve: Any, ends: Any) -> None:
    """A connection over the limit is reset; when one has ended, the next is served."""
    served = await serve(max_connections=2)
    first, second = await served.peer(), await served.peer()
    assert await served.refused() == ("RST" if ends.knows_reset else "FIN")
    assert [event.reason for event in served.events.refused] == [Reason.MAX_CONNECTIONS]
    second.finish()
    await served.settled(lambda: len(served.factory.connections) == 1)
    fourth = await served.peer()
    for peer in (first, fourth):
        peer.send(b"inside")
        await ends.until(peer.when_received(6))
        assert peer.received == b"inside"


@run
async def test_too_many_connections_of_one_peer(serve: Any, ends: Any) -> None:
    """The limit per peer counts each address; UNIX peers have none."""
    served = await serve(max_connections_per_peer=1)
    await served.peer()
    if ends.knows_addresses:
        assert await served.refused() == "RST"
        assert [event.reason for event in served.events.refused] == [
            Reason.MAX_CONNECTIONS_PER_PEER
        ]
        served.peers[0].finish()
        await served.settled(lambda: not served.factory.connections)
    second = await served.peer()
    second.send(b"inside")
    await ends.until(second.when_received(6))
    assert second.received == b"inside"


@run
async def test_idle_timeout(serve: Any, ends: Any) -> None:
    """A connection without a byte for the idle timeout is closed with FIN, and not before."""
    served = await serve(idle_timeout=10)
    peer = await served.peer()
    for count in range(1, 4):
        await ends.advance(9)
        peer.send(b".")
        await ends.until(peer.when_received(count))
    assert peer.ended is None
    await ends.advance(13)
    await ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (b"...", "FIN")
    await served.settled(lambda: served.events.endings == [Ending.IDLE])
    assert 37 <= served.events.closed[0].seconds <= 40


@run
@pytest.mark.parametrize("ending", [Ending.IDLE, Ending.DRAINED])
async def test_no_close_with_unread_input(serve: Any, ends: Any, ending: Ending) -> None:
    """Bytes that arrived before a timeout and were not read are echoed."""
    served = await serve(idle_timeout=10)
    peer = await served.peer()
    if ending is Ending.DRAINED:
        served.factory.drain(100)
    ends.send_unseen(peer, b"just in time")
    for _ in range(8):  # time passes, but the reactor does not read
        Clock.advance(ends.clock, 10)
    await ends.until(peer.when_received(12))
    assert (peer.received, peer.ended) == (b"just in time", None)
    await ends.advance(20)
    await served.settled(lambda: served.events.endings == [ending])


@run
@pytest.mark.parametrize("ending", [Ending.IDLE, Ending.DRAINED])
async def test_reset_found_by_a_timeout(serve: Any, ends: Any, ending: Ending) -> None:
    """A connection that the peer has reset is lost, even if a timeout detects it first.

    UNIX sockets have no reset: such a peer has finished sending (unix(7)).
    """
    served = await serve(idle_timeout=10)
    peer = await served.peer()
    peer.send(b"x")
    await ends.until(peer.when_received(1))
    if ending is Ending.DRAINED:
        served.factory.drain(100)
    ends.reset_unseen(peer)
    for _ in range(8):  # time passes, but the reactor does not read
        Clock.advance(ends.clock, 10)
    wanted = Ending.LOST if ends.knows_reset else ending
    await served.settled(lambda: served.events.endings == [wanted])


@run
async def test_stall_timeout(serve: Any, ends: Any) -> None:
    """A peer that does not read is reset after the stall timeout."""
    served = await serve(stall_timeout=40)
    peer = await served.peer()
    peer.stall()
    peer.send(bytes(16 * MIB))
    await ends.advance(39)
    assert served.events.endings == []
    await served.stalled(13)
    assert served.events.closed[0].unsent > 0
    peer.resume()
    await ends.until(peer.when_ended())
    assert peer.ended == "RST"
    assert len(peer.received) < 16 * MIB


@run
async def test_stalled_after_it_finished(serve: Any, ends: Any) -> None:
    """A peer that half-closes and then does not read is reset too."""
    served = await serve(stall_timeout=40)
    peer = await served.peer()
    # the kernels' buffers differ in size: send until they are full
    size = 64 * 1024
    peer.stall()
    [echo] = served.factory.connections
    while not unsent(echo.transport):
        peer.send(bytes(size))
        await ends.turn()
    peer.finish()
    await served.stalled(60)


@run
async def test_slow_is_not_stalled(serve: Any, ends: Any) -> None:
    """A peer that reads slowly is not reset, although it always has many bytes to read.

    The kernel takes more from the service only when a third of its send buffer, megabytes, is free.
    Its send queue shrinks earlier, but in large steps, as the peer's kernel opens the window
    (RFC 9293 3.8.6.2.2). Within the timeout the peer reads 640 KiB.
    """
    served = await serve(stall_timeout=30)
    peer = await served.peer()
    peer.stall()
    sent = random.Random(862).randbytes(16 * MIB)
    peer.send(sent)
    await ends.advance(5)
    for _ in range(30):
        await ends.until(peer.read(64 * 1024))
        await ends.advance(3)
    assert served.events.endings == []
    peer.resume()
    await ends.until(peer.when_received(len(sent)))
    assert peer.received == sent


@run
async def test_drain_closes_the_idle(serve: Any, ends: Any) -> None:
    """A drain closes idle connections with FIN, and refuses new ones."""
    served = await serve()
    peers = [await served.peer() for _ in range(5)]
    await ends.advance(FIRST_BYTE)
    drained = served.factory.drain(10)
    assert await served.refused() == ("RST" if ends.knows_reset else "FIN")
    assert [event.reason for event in served.events.refused] == [Reason.DRAINING]
    await ends.advance(0.5)
    await ends.until(drained)
    await ends.until(gatherResults([peer.when_ended() for peer in peers]))
    assert [peer.ended for peer in peers] == ["FIN"] * 5
    assert served.events.endings == [Ending.DRAINED] * 5


@run
async def test_drain_waits_for_the_first_byte(serve: Any, ends: Any) -> None:
    """In a drain, a new connection over TLS or behind a proxy has 1 s for its first byte."""
    served = await serve()
    peer = await served.peer()
    drained = served.factory.drain(10)
    # A plain connection has completed its round trip: SYN, ACK.
    if not isinstance(ends, TLSEndpoints | ProxyEndpoints):
        await ends.advance(0.5)
        await ends.until(drained)
        assert served.events.endings == [Ending.DRAINED]
        return
    await ends.advance(FIRST_BYTE - 0.1)
    peer.send(b"?")
    await ends.until(peer.when_received(1))
    assert not drained.called
    await ends.advance(0.5)
    await ends.until(drained)
    await ends.until(peer.when_ended())
    assert (bytes(peer.received), peer.ended) == (b"?", "FIN")
    assert served.events.endings == [Ending.DRAINED]


@run
async def test_drain_waits_for_a_quiet_moment(serve: Any, ends: Any) -> None:
    """A drain closes an active connection once it has been silent for 0.2 s."""
    served = await serve()
    peer = await served.peer()
    drained = served.factory.drain(100)
    for count in range(1, 30):
        peer.send(b"?")
        await ends.until(peer.when_received(count))
        await ends.advance(0.15)
    assert peer.ended is None
    assert not drained.called
    await ends.advance(0.5)
    await ends.until(drained)
    assert len(peer.received) == 29
    assert served.events.endings == [Ending.DRAINED]


@run
async def test_drain_delivers_everything(serve: Any, ends: Any) -> None:
    """In a drain, a slow reader receives every byte, then FIN."""
    served = await serve()
    peer = await served.peer()
    sent = random.Random(862).randbytes(16 * MIB)  # more than the kernels hold
    peer.stall()
    peer.send(sent)
    peer.finish()
    [echo] = served.factory.connections
    # Otherwise the next turn, which is long by the clock, may count as a quiet moment.
    await served.settled(lambda: unsent(echo.transport) > 0)
    drained = served.factory.drain(100)
    await ends.advance(5)
    peer.resume()
    await ends.until(peer.when_ended())
    assert peer.received == sent
    assert peer.ended == "FIN"
    await ends.advance(1)  # until the kernel's send queue is checked
    await ends.until(drained)
    assert served.events.endings == [Ending.FINISHED]


@run
async def test_drain_resets_at_the_deadline(serve: Any, ends: Any) -> None:
    """Connections left at the deadline of a drain are reset: never a FIN after a short reply."""
    served = await serve()
    peer = await served.peer()
    peer.stall()
    peer.send(bytes(16 * MIB))
    [echo] = served.factory.connections
    await served.settled(lambda: unsent(echo.transport) > 0)
    drained = served.factory.drain(5)
    await ends.advance(4)
    assert not drained.called
    await ends.advance(1.1)
    await ends.until(drained)
    assert served.events.endings == [Ending.ABORTED]
    peer.resume()
    await ends.until(peer.when_ended())
    assert peer.ended == "RST"
    assert len(peer.received) < 16 * MIB


@run
async def test_abort_by_the_application(serve: Any, ends: Any) -> None:
    """A connection that the application aborts is aborted, and the peer sees a reset."""
    served = await serve()
    peer = await served.peer()
    [echo] = served.factory.connections
    echo.abort()
    await ends.until(peer.when_ended())
    assert peer.ended == ("RST" if ends.knows_reset else "FIN")
    await served.settled(lambda: served.events.endings == [Ending.ABORTED])


@run
async def test_client_echo(serve: Any, ends: Any) -> None:
    """The client receives the replies to many calls at once, in order, of any length."""
    served = await serve()
    client = await ends.connect(EchoClientFactory(ends.clock))
    chance = random.Random(862)
    messages = [chance.randbytes(size) for size in (1, 8 * MIB, 0, 3, 100_000)]
    replies = await ends.until(gatherResults([client.echo(data) for data in messages]))
    assert replies == messages
    await ends.until(client.close())
    await served.settled(lambda: served.events.endings == [Ending.FINISHED])
    assert served.events.closed[0].bytes == sum(map(len, messages))


@run
async def test_client_close_waits_for_replies(serve: Any, ends: Any) -> None:
    """close() waits for the outstanding calls."""
    await serve()
    client = await ends.connect(EchoClientFactory(ends.clock))
    reply = client.echo(bytes(4 * MIB))
    closed = client.close()
    assert await ends.until(reply) == bytes(4 * MIB)
    await ends.until(closed)


@run
@pytest.mark.parametrize("end", ["finish", "abort"])
async def test_client_of_a_service_that_ends_early(ends: Any, end: str) -> None:
    """If the connection ends early, the client reports how many bytes are missing."""
    service = Peers()
    await ends.listen(service)
    client = await ends.connect(EchoClientFactory(ends.clock))
    reply, next_reply = client.echo(b"0123456789"), client.echo(b"abc")
    while not service.peers:
        await ends.turn()
    [peer] = service.peers
    await ends.until(peer.when_received(13))
    peer.send(b"0123")
    while client.received < 4:
        await ends.turn()
    getattr(peer, end)()
    for call, missing in ((reply, 6), (next_reply, 3)):
        with pytest.raises(EchoIncomplete) as caught:
            await ends.until(call)
        assert caught.value.missing == missing
    await ends.stop()


@run
async def test_client_of_a_service_that_changes_a_byte(ends: Any) -> None:
    """If the reply differs, the client reports the offset, the expected and the received bytes."""
    service = Peers()
    await ends.listen(service)
    client = await ends.connect(EchoClientFactory(ends.clock))
    replies = [client.echo(b"0123456789"), client.echo(b"abcdef"), client.echo(b"ghi")]
    while not service.peers:
        await ends.turn()
    [peer] = service.peers
    await ends.until(peer.when_received(19))
    peer.send(b"0123456789ab-def")
    assert await ends.until(replies[0]) == b"0123456789"
    with pytest.raises(EchoMismatch) as caught:
        await ends.until(replies[1])
    assert (caught.value.offset, caught.value.expected, caught.value.received) == (
        2,
        b"cdef",
        b"-def",
    )
    with pytest.raises(EchoIncomplete) as incomplete:
        await ends.until(replies[2])
    assert incomplete.value.missing == 3
    await ends.until(peer.when_ended())
    await ends.stop()
