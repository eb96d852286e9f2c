"""Connection limits, and the file descriptors that are left."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys

from twisted.trial.unittest import SynchronousTestCase

from echod.factory import EchoFactory
from echod.limits import FD_SETSIZE, SPARE_DESCRIPTORS, descriptors_left
from tests.reactors import reactor_of_kind


class DescriptorsLeftTests(SynchronousTestCase):
    def limit(self, soft: int) -> None:
        self.patch(resource, "getrlimit", lambda which: (soft, soft))

    def test_limit(self) -> None:
        """What RLIMIT_NOFILE leaves: what is open, and some to spare, is taken off."""
        self.limit(1000)
        left = descriptors_left()
        self.assertLess(left, 1000 - SPARE_DESCRIPTORS)
        self.assertGreater(left, 500)

    def test_not_known(self) -> None:
        """Without /dev/fd, as in a chroot, the lowest free descriptor tells how many are open."""

        def missing(path: str) -> list[str]:
            raise FileNotFoundError(path)

        self.limit(1000)
        self.patch(os, "listdir", missing)
        with socket.socket() as lowest:
            expected = 1000 - SPARE_DESCRIPTORS - lowest.fileno()
        self.assertEqual(descriptors_left(), expected)

        def exhausted(*_: object) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        self.patch(socket, "socket", exhausted)
        self.assertEqual(descriptors_left(), 1)

    def test_select(self) -> None:
        """select(2) watches no descriptor from 1024 on, whatever RLIMIT_NOFILE is."""
        reactor = reactor_of_kind("select")
        for limit in (20_000, resource.RLIM_INFINITY):
            self.limit(limit)
            left = descriptors_left(reactor)
            self.assertLess(left, FD_SETSIZE - SPARE_DESCRIPTORS)
            self.assertGreater(descriptors_left(), left)
        factory = EchoFactory()
        factory.use_reactor(reactor)
        self.assertEqual(factory.limits.total, left)
        factory = EchoFactory(max_connections=3)
        factory.use_reactor(reactor)
        self.assertEqual(factory.limits.total, 3)

    def test_at_least_one(self) -> None:
        """One connection is always tried."""
        self.limit(3)
        self.assertEqual(descriptors_left(), 1)

    def test_no_limit(self) -> None:
        """Where there is no limit there is none."""
        self.limit(resource.RLIM_INFINITY)
        self.assertEqual(descriptors_left(), sys.maxsize)
