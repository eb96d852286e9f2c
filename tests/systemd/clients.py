"""Clients that connect, send, read the echo and close, as fast as they can.

``clients.py HOST PORT COUNT`` runs COUNT clients at a time until EOF on standard input, lets the
last ones finish, and prints as JSON how all ended. It is one process with a selector.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import sys
import time

LIMIT = 20.0  # seconds for one exchange


class Client:
    """One exchange, from connect to close."""

    def __init__(self, host: str, port: int) -> None:
        self.sent = random.randbytes(random.choice((64, 1024, random.randint(64, 8192))))
        self.half_close = random.random() < 0.5
        self.received = b""
        self.offset = 0
        self.began = time.monotonic()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.connect_ex((host, port))

    def fileno(self) -> int:
        return self.sock.fileno()

    def wants(self) -> int:
        return selectors.EVENT_WRITE if self.offset < len(self.sent) else selectors.EVENT_READ

    def step(self) -> str | None:
        """Send or receive once, and return how the exchange ended, if it has."""
        if self.offset < len(self.sent):
            self.offset += self.sock.send(self.sent[self.offset :])
            if self.offset == len(self.sent) and self.half_close:
                self.sock.shutdown(socket.SHUT_WR)
            return None
        part = self.sock.recv(65536)
        self.received += part
        if part and (self.half_close or len(self.received) < len(self.sent)):
            return None
        return "served" if self.received == self.sent else "short"


def main(host: str, port: int, count: int) -> None:
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    endings = dict.fromkeys(("served", "refused", "reset", "short", "late", "other"), 0)
    size, slowest, others = 0, 0.0, []
    clients: set[Client] = set()
    going = True
    while going or clients:
        while going and len(clients) < count:
            client = Client(host, port)
            clients.add(client)
            selector.register(client, client.wants())
        for key, _ in selector.select(1.0):
            client = key.fileobj
            if client is sys.stdin:
                going = False
                selector.unregister(sys.stdin)
                continue
            try:
                ending = client.step()
            except BlockingIOError:
                continue
            except ConnectionRefusedError:
                ending = "refused"
            except (ConnectionResetError, BrokenPipeError):
                ending = "reset"
            except OSError as error:
                ending = "other"
                others.append(repr(error))
            if ending is None:
                selector.modify(client, client.wants())
                continue
            endings[ending] += 1
            size += len(client.received)
            slowest = max(slowest, time.monotonic() - client.began)
            selector.unregister(client)
            client.sock.close()
            clients.discard(client)
        for client in [each for each in clients if time.monotonic() - each.began > LIMIT]:
            endings["late"] += 1
            selector.unregister(client)
            client.sock.close()
            clients.discard(client)
    print(json.dumps({**endings, "bytes": size, "slowest": slowest, "others": others[:5]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
