"""Flood a service with datagrams from forged sources, and send some from a real one.

``python tests/programs/flood.py HOST PORT PARTS COUNT EVERY`` sends PARTS times COUNT forged
datagrams, each from another source, and a real one after every EVERY of them. After each part it
prints a JSON list: real datagrams answered at the first try, answered at all, and sent.

The flood waits for the reply to the real datagram, so that the receive buffer never overflows.
"""

from __future__ import annotations

import json
import socket
import sys

from forge import packet

TRIES = 5
PATIENCE = 1.0  # seconds until a reply counts as lost


def main() -> None:
    host, port, parts, count, every = sys.argv[1], *map(int, sys.argv[2:])
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    raw.connect((host, 0))
    _, data = packet("1.0.0.0", 50000, host, port, b"forged")
    before, after = (
        data[:12],
        data[16:],
    )  # around the source address; the kernel writes the checksum
    asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asker.connect((host, port))
    asker.settimeout(PATIENCE)
    first = answered = asks = 0
    for number in range(1, parts * count + 1):
        # From 1.0.0.1 on: 2,000,000,000 addresses below 127.0.0.0.
        raw.send(before + (0x01000000 + number).to_bytes(4, "big") + after)
        if number % every == 0:
            asks += 1
            for tried in range(TRIES):
                sent = b"%d %d" % (asks, tried)
                asker.send(sent)
                try:
                    while asker.recv(99) != sent:  # a late reply to an earlier try
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
