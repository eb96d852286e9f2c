"""Keep the sockets of failed binds from warning in a later test."""

from __future__ import annotations

import gc
import warnings

from twisted.trial.unittest import SynchronousTestCase


def expect_failing_binds(case: SynchronousTestCase) -> None:
    """Let ports of ``case`` fail to listen without a ResourceWarning in a later test.

    When bind fails, some releases of Twisted leave the socket to the garbage collector. This
    runs the collector at the end of the test, without its warnings.
    """

    def collect() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.enable()

    gc.disable()
    case.addCleanup(collect)
