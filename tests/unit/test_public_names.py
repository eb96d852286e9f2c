"""The public names of ``echod``, imported on first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import echod
from tests import ROOT, TIMEOUT


def test_all_names() -> None:
    """Each public name can be imported, is in ``dir()``, and is the object that its module has."""
    for name in echod.__all__:
        assert getattr(echod, name) is echod.__dict__[name]
        assert name in dir(echod)
    assert echod.Echo.__module__ == "echod.protocol"


def test_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up once, and then is an attribute of the package."""
    monkeypatch.delitem(echod.__dict__, "ProxyFactory", raising=False)
    assert echod.ProxyFactory.__module__ == "echod.proxy"
    assert "ProxyFactory" in echod.__dict__


@pytest.mark.parametrize("name", ["nothing", "client_for", "Iterator"])
def test_no_such_name(name: str) -> None:
    """Other names are missing, also those that one of the modules has imported."""
    with pytest.raises(AttributeError, match=f"module 'echod' has no attribute '{name}'"):
        getattr(echod, name)


def test_cheap_to_import() -> None:
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
    assert run.stdout == f"False True Echo {echod.__version__}\n"
