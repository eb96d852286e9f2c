"""CPU time of a datagram, compared with asyncio's: ``python benchmarks/datagrams.py``.

Each round starts both servers on 127.0.0.1. The servers share one core, and the load has another.
They get the load in turns: each of 50 sockets sends a datagram of 64 bytes, compares the reply, and
sends the next. The benchmark compares the CPU time of the servers' processes. echod applies all its
rules, at rates above the load.
"""

from __future__ import annotations

import argparse
import os
import random
import selectors
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Final

from losses import HOST, give_up_after, table
from servers import ECHOES, LOAD_CORE, PEERS, TWISTD, Peer, Server, end_children
from speed import machine, versions

WHOLE: Final = 300  # seconds after which the benchmark gives up
SOCKETS: Final = 50
SIZE: Final = 64  # bytes of a datagram
TURNS: Final = 5  # in a round, for each server

ECHOD, ASYNCIO = "echod-udp", "asyncio-udp"
RATES: Final = ("--udp-rate", "1e9", "--udp-total-rate", "1e9")
PEERS[ECHOD] = Peer("echod", (*TWISTD, "echod", "--listen", f"udp:0:interface={HOST}", *RATES))
PEERS[ASYNCIO] = Peer("asyncio DatagramProtocol", (*ECHOES, ASYNCIO))


class Load:
    """The sockets connected to one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._chance = random.Random(862)
        self._selector = selectors.DefaultSelector()
        for _ in range(SOCKETS):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect((HOST, server.port))
            self._selector.register(sock, selectors.EVENT_READ)

    def run(self, count: int) -> float:
        """Have ``count`` datagrams echoed; return the server's CPU time of one, in µs."""
        before = self.server.cpu()
        waits: dict[socket.socket, bytes] = {}
        for key in self._selector.get_map().values():
            assert isinstance(key.fileobj, socket.socket)
            self._send(key.fileobj, waits)
        done = 0
        while waits:
            ready = self._selector.select(5)
            if not ready:
                raise RuntimeError(f"{self.server.name}: {len(waits)} did not come back in 5 s")
            for key, _ in ready:
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock.recv(SIZE + 1) != waits.pop(sock):
                    raise RuntimeError(f"{self.server.name}: a wrong datagram came back")
                done += 1
                if done + len(waits) < count:
                    self._send(sock, waits)
        return (self.server.cpu() - before) / 1000 / done

    def _send(self, sock: socket.socket, waits: dict[socket.socket, bytes]) -> None:
        waits[sock] = self._chance.randbytes(SIZE)
        sock.send(waits[sock])

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()


def measure(order: Sequence[str], count: int) -> dict[str, float]:
    """Return each server's CPU time of a datagram, in microseconds."""
    with ExitStack() as stack:
        loads = []
        for name in order:
            server = Server(name, "")
            stack.callback(server.close)
            server.ready()
            loads.append(Load(server))
            stack.callback(loads[-1].close)
            loads[-1].run(count // 10)  # warm up
        spent: dict[str, list[float]] = {name: [] for name in order}
        for load in loads * TURNS:
            spent[load.server.name].append(load.run(count))
        return {name: median(each) for name, each in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the CPU time of a datagram on 127.0.0.1, print a reST table."
    )
    parser.add_argument("--short", action="store_true", help="run briefly, for CI: imprecise")
    short = parser.parse_args().short
    give_up_after(WHOLE)
    rounds, count = (1, 500) if short else (7, 20_000)
    os.sched_setaffinity(0, LOAD_CORE)
    try:
        spent = [measure((ECHOD, ASYNCIO)[:: (-1) ** number], count) for number in range(rounds)]
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, RuntimeError) as error:
        sys.exit(f"datagrams.py: {error}")
    finally:
        end_children()
    rows = [[PEERS[name].title, spread([each[name] for each in spent])] for name in spent[0]]
    rows.append(["echod / asyncio", spread([each[ECHOD] / each[ASYNCIO] for each in spent])])
    print(table([["CPU time a datagram, µs", "median (least..most)"]], sorted(rows)))
    print(
        f"\n{rounds} rounds; {SOCKETS} sockets, {SIZE} bytes a datagram.",
        f"{machine()}.",
        f"{versions([])}.",
        sep="\n",
    )


def spread(numbers: Sequence[float]) -> str:
    return f"{median(numbers):.2f} ({min(numbers):.2f}..{max(numbers):.2f})"


if __name__ == "__main__":
    main()
