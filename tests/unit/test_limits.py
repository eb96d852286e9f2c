"""Connection limits, and the file descriptors that are left."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Reason
from echod.factory import EchoFactory
from echod.limits import FD_SETSIZE, SPARE_DESCRIPTORS, ConnectionLimits, descriptors_left
from tests.reactors import reactor_of_kind


class DescriptorsLeftTests(SynchronousTestCase):
    def limit(self, soft: int) -> None:
        self.patch(resource, "getrlimit", lambda which: (soft, soft))

    def test_limit(self) -> None:
        """Open and spare descriptors are subtracted from RLIMIT_NOFILE."""
        self.limit(1000)
        left = descriptors_left()
        self.assertLess(left, 1000 - SPARE_DESCRIPTORS)
        self.assertGreater(left, 500)

    def test_no_dev_fd(self) -> None:
        """Without /dev/fd, as in a chroot, the lowest free descriptor is the estimate."""

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
        """select(2) cannot watch descriptors from 1024 on, whatever RLIMIT_NOFILE is."""
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
        """At least one connection is admitted."""
        self.limit(3)
        self.assertEqual(descriptors_left(), 1)

    def test_no_limit(self) -> None:
        """Without RLIMIT_NOFILE there is no limit."""
        self.limit(resource.RLIM_INFINITY)
        self.assertEqual(descriptors_left(), sys.maxsize)


class PerPeerTests(SynchronousTestCase):
    def test_replace(self) -> None:
        """A connection that replaces another counts for the same peer, once."""
        peer = IPv4Address("TCP", "192.0.2.1", 49152)
        limits = ConnectionLimits(10, 1, ())
        first, second = object(), object()
        limits.admit(first, peer)
        limits.replace(first, second)
        limits.replace(first, object())
        self.assertIs(limits.exceeded(peer), Reason.MAX_CONNECTIONS_PER_PEER)
        limits.release(first)
        self.assertIs(limits.exceeded(peer), Reason.MAX_CONNECTIONS_PER_PEER)
        limits.release(second)
        self.assertIsNone(limits.exceeded(peer))
