"""The service of ``twistd echod``.

Reading order: ``options`` (the command line), ``tap`` (the service maker), ``service`` (its
lifecycle), ``listeners`` (where it listens), ``signals``, ``sdnotify`` and ``logs``; ``metrics``,
``page``, ``webguard`` and ``web`` (the HTTP pages).
"""

from echod.daemon.options import Options
from echod.daemon.tap import makeService

__all__ = ["Options", "makeService"]
