"""The one line that an operator reads when the daemon cannot listen."""

from __future__ import annotations

import errno
import os
from unittest import mock

from twisted.internet.error import CannotListenError
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import explain


class ExplainTests(SynchronousTestCase):
    def test_without_words(self) -> None:
        """The text of a Python error such as KeyError is not shown: it is for programmers."""
        for error in (KeyError(), KeyError("name"), TypeError("f() missing 1 argument")):
            self.assertEqual(explain(error), "cannot listen on this endpoint")

    def test_sandbox(self) -> None:
        """A missing address family is attributed to the sandbox only if IPv4 is missing, too."""
        for number, sandbox in (
            (None, False),
            (errno.EMFILE, False),
            (errno.EAFNOSUPPORT, True),
        ):
            with mock.patch("socket.socket") as made:
                if number is not None:
                    made.side_effect = OSError(number, os.strerror(number))
                line = explain(OSError(errno.EAFNOSUPPORT, "No such family"))
            self.assertEqual("the sandbox of echod.service" in line, sandbox)

    def test_read_only(self) -> None:
        """The error about a read-only path has advice for echod.service, too."""
        line = explain(OSError(errno.EROFS, os.strerror(errno.EROFS)))
        self.assertIn("read-only file system: choose a writable directory; under echod.ser", line)

    def test_descriptors(self) -> None:
        """Where the process has no descriptor left, the line names the limit to raise."""
        line = explain(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        self.assertEqual(
            line, "too many open files: raise the limit (ulimit -n, or LimitNOFILE= of systemd)"
        )

    def test_lock(self) -> None:
        """Twisted's error about the lock of a UNIX socket is shown as it is."""
        error = CannotListenError(None, b"/run/x", "Cannot acquire lock")
        self.assertEqual(explain(error), "Cannot acquire lock")

    def test_all_interfaces(self) -> None:
        """An empty interface, which means all interfaces, is shown as *."""
        error = CannotListenError("", 7, OSError(errno.EIO, "Input/output error"))
        self.assertEqual(explain(error), "cannot listen on tcp *:7: input/output error")
