"""Pass sockets to a process, as systemd does (sd_listen_fds(3))."""

from __future__ import annotations

import socket
import sys
from typing import Any

PASS = """
import fcntl, os, sys
given = int(sys.argv[1])
for number in range(given):
    source = int(sys.argv[3 + number])
    os.dup2(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 100), 3 + number)
os.closerange(3 + given, 100)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(given)}
os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execv(sys.argv[3 + given], sys.argv[3 + given :])
"""


def socket_activation(*sockets: socket.socket, names: str) -> dict[str, Any]:
    """Return the Daemon arguments that pass ``sockets`` to it under ``names``."""
    numbers = [sock.fileno() for sock in sockets]
    words = [str(word) for word in (len(numbers), names, *numbers)]
    return {"prefix": (sys.executable, "-c", PASS, *words), "pass_fds": numbers}
