"""Scenarios: TLS from credentials and from files, renewal, a missing certificate."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from system import (
    HERE,
    HOST,
    TLS_PORT,
    UNIT,
    UNITS,
    Facts,
    connect,
    echoes,
    journal,
    main_pid,
    messages,
    now,
    run,
    scenario,
    shell,
    show,
    systemctl,
    until,
)

CERTIFICATE = Path("/etc/echod/cert.pem")


def issue() -> None:
    """Write a new key and its self-signed certificate."""
    CERTIFICATE.parent.mkdir(exist_ok=True)
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-subj", "/CN=localhost"),
        *("-out", str(CERTIFICATE), "-keyout", str(CERTIFICATE.with_name("key.pem"))),
    )


@contextmanager
def tls(name: str) -> Iterator[None]:
    """Serve TLS inside the block, as the document says, with the drop-in ``name``."""
    directory = UNITS / f"{UNIT}.d"
    directory.mkdir()
    issue()
    try:
        shell(f"{name}.sh")
        shutil.copy(HERE / f"{name}.conf", directory / "override.conf")
        shell("tls-enable.sh")
        yield
    finally:
        shutil.rmtree(directory)
        systemctl("disable", "--now", "echod-tls.socket")
        systemctl("daemon-reload")
        systemctl("restart", UNIT)


def s_client(host: str = HOST, text: str = "hello") -> bool:
    """Return whether ``text`` comes back over TLS, from a server with the newest certificate."""
    command = f"openssl s_client -quiet -verify_return_error -CAfile {CERTIFICATE}"
    with subprocess.Popen(
        [*command.split(), "-connect", f"{host}:{TLS_PORT}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(text.encode())
        client.stdin.flush()
        received = client.stdout.read(len(text))
        client.kill()
    return received.decode() == text


def both() -> list[bool]:
    """Return whether TLS and TCP are served, each over IPv4 and IPv6."""
    return [s_client(), s_client("[::1]"), echoes(connect()), echoes(connect("::1"))]


@scenario
def tls_restart() -> Facts:
    with tls("tls"):
        served, first = both(), main_pid()
        issue()
        old = s_client()
        systemctl("restart", UNIT)
        return {
            "served": served,
            "old": old,
            "renewed": both(),
            "other process": main_pid() != first,
            "journal": messages(journal(f"_SYSTEMD_UNIT={UNIT}", "_PID=" + str(first))),
        }


@scenario
def tls_reload() -> Facts:
    with tls("tls-reload"), connect() as held:
        served, first, since = both(), main_pid(), now()
        issue()
        shell("tls-reload.sh")
        systemctl("reload", UNIT)
        until(s_client)
        held.sendall(b"?")
        return {
            "served": served,
            "renewed": both(),
            "same process": main_pid() == first,
            "held": held.recv(1) == b"?",
            "journal": messages(journal(f"_SYSTEMD_UNIT={UNIT}", since=since)),
        }


@scenario
def no_certificate() -> Facts:
    text = "[Service]\nLoadCredential=key.pem:/nowhere/key.pem\n"
    directory = UNITS / f"{UNIT}.d"
    directory.mkdir()
    (directory / "override.conf").write_text(text, encoding="utf-8")
    since = now()
    try:
        systemctl("daemon-reload")
        run("systemctl", "restart", UNIT, check=False)
        facts = {
            "state": show("ActiveState"),
            "socket": show("ActiveState", "echod.socket"),
            "status": show("ExecMainStatus"),
            "restarted": int(show("NRestarts")),
            "journal": messages(journal("--unit", UNIT, since=since)),
        }
    finally:
        shutil.rmtree(directory)
        systemctl("daemon-reload")
    return {**facts, "corrected": echoes(connect())}
