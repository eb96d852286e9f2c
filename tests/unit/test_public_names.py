"""The public names of ``echod``, imported on first use."""

from __future__ import annotations

import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

import echod
from tests import ROOT, TIMEOUT


class PublicNameTests(SynchronousTestCase):
    def test_all_names(self) -> None:
        """Each public name can be imported, and is in ``dir()``."""
        for name in echod.__all__:
            self.assertIs(getattr(echod, name), echod.__dict__[name])
            self.assertIn(name, dir(echod))
        self.assertEqual(echod.Echo.__module__, "echod.protocol")

    def test_first_use(self) -> None:
        """A name is looked up once, and then is an attribute of the package."""
        echod.__dict__.pop("ProxyFactory", None)
        self.assertEqual(echod.ProxyFactory.__module__, "echod.proxy")
        self.assertIn("ProxyFactory", echod.__dict__)

    def test_no_such_name(self) -> None:
        """Other names are missing, also those that one of the modules has imported."""
        for name in ["nothing", "client_for", "Iterator"]:
            with self.assertRaisesRegex(
                AttributeError, f"module 'echod' has no attribute '{name}'"
            ):
                getattr(echod, name)

    def test_cheap_to_import(self) -> None:
        """Neither the package nor the entry point of ``echod-client`` imports Twisted."""
        program = (
            "import sys, echod, echod.client.main; found = 'twisted' in sys.modules\n"
            "from echod import *; from echod import EchoFactory\n"
            "print(found, EchoFactory is echod.EchoFactory, Echo.__name__, __version__)"
        )
        run = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
            cwd=ROOT,
        )
        self.assertEqual(run.stdout, f"False True Echo {echod.__version__}\n")
