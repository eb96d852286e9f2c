"""docs/fault-plans.rst, the faults of TLS: the table has all of them, and what clients report."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from docutils import nodes

from echod.certificates import Certificates
from echod.faultplan import OF_TLS
from echod.faults import TLS, Plan, when
from echod.faulty import FaultyEchoFactory
from echod.faultytls import FaultyTLSFactory
from tests import ROOT, TIMEOUT
from tests.docs.test_all import blocks, section, tree
from tests.unit.tls.test_faulty_certificates import STRICT, client, handshake

SECTION = section(tree(ROOT / "docs" / "fault-plans.rst"), "Faults of TLS")


def errors() -> dict[str, str]:
    """Return the first message in the row of each fault, or an empty text."""
    found = {}
    [body] = SECTION.findall(nodes.tbody)
    for row in body.findall(nodes.row):
        name, effect = row
        messages = [each.astext() for each in effect.findall(nodes.literal)]
        found[name.astext()] = messages[0] if messages else ""
    return found


def test_all_faults() -> None:
    """The table has each fault of TLS."""
    assert sorted(errors()) == sorted(OF_TLS)


def test_certificate(tmp_path: Path) -> None:
    """The command makes a certificate for all faults, and clients report what the table says."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed; .ci/run installs it")
    [command] = blocks(SECTION, "sh")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True, timeout=TIMEOUT)
    file = str(tmp_path / "echo.pem")
    factory = FaultyEchoFactory(Plan((when.certificate("expired"),)), serves=TLS)
    port = FaultyTLSFactory(factory, Certificates(str(tmp_path / "echo.key"), file))
    for fault in ("wrong-name", "expired", "self-signed"):
        for flags in (ssl.VerifyFlags(0), STRICT):
            assert errors()[fault] in handshake(port.context_of(fault), client(file, flags))
    error = handshake(port.context_of("old-version"), client(file))
    assert errors()["old-version"] == error.lower().replace("_", " ")
