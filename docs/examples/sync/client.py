"""A client that retries."""

import socket


def get(host, port, message, attempts=3):
    """Return the reply to ``message``; if the connection fails, connect again."""
    for attempt in range(1, attempts + 1):
        try:
            with socket.create_connection((host, port), timeout=5) as connection:
                connection.sendall(message)
                connection.shutdown(socket.SHUT_WR)
                reply = b""
                while part := connection.recv(4096):
                    reply += part
            if reply:
                return reply
            raise ConnectionError("no reply")
        except OSError:
            if attempt == attempts:
                raise
