"""Flood a service with forged datagrams, and ask it honestly now and then.

``python tests/programs/flood.py HOST PORT PARTS COUNT EVERY``: after each COUNT forged
datagrams, each from another source, it prints a line of JSON about the honest datagrams, one
for EVERY forged ones: how many were answered at the first try, at all, and how many there were.

Who forges waits for the honest answer, so that no more are under way than the kernel holds: what
it has no room for would test the kernel.
"""

from __future__ import annotations

import json
import socket
import sys

from forge import packet

TRIES = 5
PATIENCE = 1.0  # seconds for an answer


def main() -> None:
    host, port, parts, count, every = sys.argv[1], *map(int, sys.argv[2:])
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.connect((host, 0))
    _, data = packet("1.0.0.0", 50000, host, port, b"forged")
    before, after = data[:12], data[16:]  # of the source; the checksum is the kernel's to write
    asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.connect((host, port))
    asker.settimeout(PATIENCE)
    first = answered = asks = 0
    for number in range(1, parts * count + 1):
        # 1.0.0.0 and on, which is below 127.0.0.0 for the first two thousand millions
        raw.send(before + (0x01000000 + number).to_bytes(4, "big") + after)
        if number % every == 0:
            asks += 1
            for tried in range(TRIES):
                sent = b"%d %d" % (asks, tried)
                asker.send(sent)
                try:
                    while asker.recv(99) != sent:  # late, of a try before
                        pass
                except TimeoutError:
                    continue
                first += not tried
                answered += 1
                break
        if number % count == 0:
            print(json.dumps([first, answered, asks]), flush=True)


if __name__ == "__main__":
    main()
