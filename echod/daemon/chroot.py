"""``twistd --chroot``: load beforehand what the daemon needs after chroot(2).

twistd makes the service, changes its root directory, and listens only then. A module, a codec or
a device that is first used later is not to be found in the new root.
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
    """Load what is needed after chroot(2); without ``--chroot``, do nothing.

    ``tests/programs/test_chroot.py`` fails for a module or file that is first looked for after
    chroot(2).

    :param twistd: the options of twistd; ``None``: twistd does not run the service.
    :raises CannotServe: where the directory lacks a file that twistd itself opens in it.
    """
    if twistd is None or twistd["chroot"] is None:
        return
    check(Path(twistd["chroot"]), twistd)
    # getaddrinfo() of Python encodes each host by this codec, also an address such as ::1.
    codecs.lookup("idna")
    # Twisted opens /dev/null when it first listens: a descriptor in reserve for accept(2).
    tcp._reservedFD.reserve()


def check(root: Path, twistd: Mapping[str, Any]) -> None:
    """Raise CannotServe where ``root`` lacks what twistd opens in it; its errors are tracebacks."""
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
    """Return where the absolute ``path`` is before chroot(2), if ``root`` becomes the root."""
    return root / path.lstrip("/")


def has_user(passwd: Path, uid: int) -> bool:
    """Return whether a file of the form of passwd(5) has the user ``uid``."""
    try:
        lines = passwd.read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split(":")[2:3] == [str(uid)] for line in lines)
