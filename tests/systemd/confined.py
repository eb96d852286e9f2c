"""Try to write files, open sockets and see processes; print as JSON which attempts succeed.

In the sandbox of echod.service the result shows what an attacker could do from a compromised
daemon. Without the sandbox it shows that the attempts work.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Callable

FAMILIES = ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG")
KINDS = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_RAW)

UNENDING = ("/proc", "/sys")
"""File systems of the kernel, too large to walk through; their mount points are tried."""


def worked(attempt: Callable[..., object], *arguments: object) -> bool:
    try:
        attempt(*arguments)
    except OSError:
        return False
    return True


def seen() -> tuple[set[str], list[str], list[str]]:
    """Return all directories and mount points, the files with a write bit, and the sockets."""
    directories, files, sockets = {f"/proc/{os.getpid()}"}, [], []
    for top, below, names in os.walk("/"):
        directories.add(top)
        if top == "/":
            below[:] = [name for name in below if f"/{name}" not in UNENDING]
        for name in names:
            path = os.path.join(top, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISSOCK(mode):
                sockets.append(path)
            elif stat.S_ISREG(mode) and mode & 0o222:
                files.append(path)
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        directories.update(line.split()[1].encode().decode("unicode_escape") for line in mounts)
    return directories, files, sockets


def can_make(directory: str) -> bool:
    """Return whether a directory, a file or a FIFO can be made in ``directory``."""
    path = os.path.join(directory, f"echod-was-here-{os.getpid()}")
    if worked(os.mkdir, path):
        os.rmdir(path)
        return True
    if worked(open_file, path, os.O_CREAT | os.O_WRONLY) or worked(os.mkfifo, path):
        os.unlink(path)
        return True
    return False


def can_open(path: str) -> bool:
    """Return whether the file at ``path`` can be opened for writing."""
    return worked(open_file, path, os.O_WRONLY)


def open_file(path: str, flags: int) -> None:
    os.close(os.open(path, flags))


def can_reach(path: str) -> bool:
    """Return whether a connection to the UNIX socket at ``path`` succeeds."""
    return any(worked(connect, kind, path) for kind in KINDS if kind != socket.SOCK_RAW)


def connect(kind: int, path: str) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.settimeout(1)
        sock.connect(path)


def can_create(name: str) -> bool:
    """Return whether a socket of the address family ``name`` can be created."""
    return any(worked(socket.socket, getattr(socket, name), kind) for kind in KINDS)


def main(port: int) -> None:
    """Try everything; ``port`` listens on 127.0.0.1."""
    directories, files, sockets = seen()
    result = {
        "uid": os.getuid(),
        "directories": len(directories),
        "files": len(files),
        "made in": sorted(filter(can_make, directories)),
        "opened": sorted(filter(can_open, files)),
        "reached": sorted(filter(can_reach, sockets)),
        "families": list(filter(can_create, FAMILIES)),
        "connected": worked(socket.create_connection, ("127.0.0.1", port), 2),
        "processes": [int(name) for name in os.listdir("/proc") if name.isdigit()],
        "pid": os.getpid(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]))
