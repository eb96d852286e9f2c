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
        """An error that is no error of the system is not repeated: its text is for programmers."""
        for error in (KeyError(), KeyError("name"), TypeError("f() missing 1 argument")):
            self.assertEqual(explain(error), "cannot listen on this endpoint")

    def test_sandbox(self) -> None:
        """An address family that is missing is the sandbox's doing only if IPv4 is missing."""
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
        """A path that cannot be written to may be that of a unit."""
        line = explain(OSError(errno.EROFS, os.strerror(errno.EROFS)))
        self.assertIn("read-only file system: choose a writable directory; under echod.ser", line)

    def test_descriptors(self) -> None:
        """Where the process has no descriptor left, the line names the limit to raise."""
        line = explain(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        self.assertEqual(
            line, "too many open files: raise the limit (ulimit -n, or LimitNOFILE= of systemd)"
        )

    def test_lock(self) -> None:
        """Twisted's lock of a UNIX socket says so itself."""
        error = CannotListenError(None, b"/run/x", "Cannot acquire lock")
        self.assertEqual(explain(error), "Cannot acquire lock")

    def test_all_interfaces(self) -> None:
        """No interface is all interfaces."""
        error = CannotListenError("", 7, OSError(errno.EIO, "Input/output error"))
        self.assertEqual(explain(error), "cannot listen on tcp *:7: input/output error")
