"""The service that ``twistd`` runs.

To read it in this order: ``options`` and ``wiring`` (what is asked for), ``listening``,
``passed`` and ``ports`` (where), ``service`` (the order of its life), ``notify``, ``logs``,
``metrics``, ``page`` and ``web`` (who is told, and how).
"""

from echod.daemon.options import Options
from echod.daemon.tap import makeService

__all__ = ["Options", "makeService"]
