"""The service that ``twistd`` runs: options, listening, the order of its life, and its log."""

from echod.daemon.options import Options
from echod.daemon.service import makeService

__all__ = ["Options", "makeService"]
