"""``twistd --chroot``: load modules, codecs and devices before chroot(2) hides them.

twistd makes the service, changes its root directory, and then starts the service. The new root
has no Python modules, and often no /dev.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twisted.internet import tcp

from echod.daemon.errors import CannotServe


def prepare(twistd: Mapping[str, Any] | None) -> None:
    """Load the modules and devices that the daemon needs after chroot(2), if ``--chroot`` is given.

    ``tests/programs/test_chroot.py`` fails if the daemon opens another module or file later.

    :param twistd: the options of twistd; ``None``: twistd does not run the service.
    :raises CannotServe: if the new root lacks a file that twistd itself opens.
    """
    if twistd is None or twistd["chroot"] is None:
        return
    check(Path(twistd["chroot"]), twistd)
    # socket.getaddrinfo() encodes each host with this codec, even an address such as ::1.
    codecs.lookup("idna")
    # Twisted opens /dev/null when it first listens, to reserve a descriptor for accept(2).
    tcp._reservedFD.reserve()


def check(root: Path, twistd: Mapping[str, Any]) -> None:
    """Raise CannotServe if a file that twistd opens is missing: twistd would print a traceback."""
    if os.geteuid() != 0:
        raise CannotServe(
            f"--chroot {root}: chroot(2) needs root's rights: leave it out, or use sudo"
        )
    if not root.is_dir():
        raise CannotServe(f"--chroot {root}: there is no such directory: make it first")
    pid_file, uid = twistd["pidfile"], twistd["uid"]
    if pid_file and not inside(root, pid_file).parent.is_dir():
        raise CannotServe(
            f"--pidfile {pid_file}: --chroot {root} has no such directory inside: "
            "add --pidfile= for no pid file, or --pidfile=/twistd.pid"
        )
    if not twistd["nodaemon"] and not inside(root, "/dev/null").exists():
        raise CannotServe(
            f"--chroot {root}: in the background, twistd needs /dev/null inside: "
            f"stay in the foreground (-n), or mknod -m 666 {inside(root, '/dev/null')} c 1 3"
        )
    if uid is not None and not has_user(inside(root, "/etc/passwd"), uid):
        raise CannotServe(
            f"--uid {uid}: {inside(root, '/etc/passwd')} has no such user, and after --chroot "
            f"twistd looks there: copy the line that getent passwd {uid} prints"
        )


def inside(root: Path, path: str) -> Path:
    """Return where to find, before chroot(2), the file ``path`` of the new root."""
    return root / path.lstrip("/")


def has_user(passwd: Path, uid: int) -> bool:
    """Return whether a passwd(5) file has the user ``uid``."""
    try:
        lines = passwd.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split(":")[2:3] == [str(uid)] for line in lines)
