"""Scenarios: drop-ins with options and other sockets; status and metrics."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import time
from pathlib import Path

from system import (
    HOST,
    PATIENCE,
    PORT,
    UNIT,
    UNITS,
    Facts,
    connect,
    connect_unix,
    drop_in,
    echoes,
    journal,
    main_pid,
    messages,
    now,
    run,
    scenario,
    scrape,
    show,
    systemctl,
    until,
    until_status,
)


@scenario
def refusals() -> Facts:
    with drop_in('[Service]\nEnvironment="OPTIONS=--max-connections 2"\n'):
        since = now()
        held = [connect(), connect()]
        until_status("2 connections open")
        refused = 0
        for _ in range(3):
            try:
                with connect() as client:
                    refused += client.recv(1) != b""
            except ConnectionResetError:
                refused += 1
        for client in held:
            assert echoes(client)
        # One line sums up the refusals of a second, at the end of that second.
        until(
            lambda: (
                sum(
                    int(re.findall(r"refused (\d+)", entry["MESSAGE"])[0])
                    for entry in journal("--unit", UNIT, "--priority=warning", since=since)
                )
                == 3
            )
        )
    return {
        "refused": refused,
        "warnings": messages(journal("--unit", UNIT, "--priority=warning", since=since)),
        "all": messages(journal(f"_SYSTEMD_UNIT={UNIT}", since=since)),
    }


@scenario
def wrong_option() -> Facts:
    directory = UNITS / f"{UNIT}.d"
    directory.mkdir()
    (directory / "wrong.conf").write_text('[Service]\nEnvironment="OPTIONS=--wrong"\n')
    since = now()
    try:
        systemctl("daemon-reload")
        run("systemctl", "restart", UNIT, check=False)
        facts = {
            "state": show("ActiveState"),
            "socket": show("ActiveState", "echod.socket"),
            "restarted": int(show("NRestarts")),
            "errors": messages(journal(f"_SYSTEMD_UNIT={UNIT}", "--priority=err", since=since)),
        }
    finally:
        (directory / "wrong.conf").unlink()
        directory.rmdir()
        systemctl("daemon-reload")
    return {**facts, "corrected": echoes(connect())}


@scenario
def own_ports() -> Facts:
    directory = UNITS / f"{UNIT}.d"
    directory.mkdir()
    errors = {}
    try:
        for options in (
            "--port 7",
            "--interface 127.0.0.1",
            "--listen tcp:7",
            "--listen udp:7",
            "--listen haproxy:tcp6:7",
            "--listen unix:/run/echo",
            "--metrics tcp:9862",
        ):
            text = f'[Service]\nEnvironment="OPTIONS={options}"\n'
            (directory / "override.conf").write_text(text, encoding="utf-8")
            systemctl("daemon-reload")
            since = now()
            run("systemctl", "restart", UNIT, check=False)
            found = journal(f"_SYSTEMD_UNIT={UNIT}", "--priority=err", since=since)
            errors[options] = messages(found)
    finally:
        (directory / "override.conf").unlink()
        directory.rmdir()
        systemctl("daemon-reload")
    return {"errors": errors, "corrected": echoes(connect())}


@scenario
def status() -> Facts:
    texts = [until_status("0 connections open")]
    clients = []
    for count in (1, 2, 3):
        clients.append(connect())
        texts.append(until_status(f"{count} connection{'s' if count != 1 else ''} open"))
    report = systemctl("status", "--no-pager", UNIT)
    for client in clients:
        client.close()
    texts.append(until_status("0 connections open"))
    return {"texts": texts, "report": [line.strip() for line in report.splitlines()]}


@scenario
def metrics() -> Facts:
    [command] = re.findall(
        r"`(systemctl enable echod-metrics.*)`",
        (UNITS / "echod-metrics.socket").read_text(encoding="utf-8"),
    )
    run("/bin/bash", "-euc", command)
    counted = 0
    for size in (1, 99, 999_900):
        data = os.urandom(size)
        assert echoes(connect(), data)
        counted += size
    until(lambda: show("StatusText") == "0 connections open")
    samples = scrape()
    return {"command": command, "counted": counted, "samples": samples}


@scenario
def other_sockets() -> Facts:
    path = "/run/echod.sock"
    facts: Facts = {"ipv6": echoes(connect("::1"))}
    with drop_in(f"[Socket]\nListenStream=\nListenStream=7\nListenStream={path}\n", "echod.socket"):

        def served() -> list[bool]:
            return [
                echoes(sock) for sock in (connect(HOST, 7), connect("::1", 7), connect_unix(path))
            ]

        facts["before"] = served()
        inode = os.stat(path).st_ino
        facts["old port"] = socket.socket().connect_ex((HOST, PORT))
        replaced = main_pid()
        systemctl("restart", UNIT)
        facts["after"] = served()
        facts["same file"] = os.stat(path).st_ino == inode
        facts["other process"] = main_pid() != replaced
    facts["back"] = echoes(connect())
    return facts


@scenario
def datagrams() -> Facts:
    asks = [b"%d" % number for number in range(50)]
    with (
        drop_in(f"[Socket]\nListenDatagram={HOST}:{PORT}\n", "echod.socket"),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(PATIENCE)
        client.connect((HOST, PORT))

        def answers() -> list[str]:
            for ask in asks:
                client.send(ask)
            return [client.recv(9).decode() for _ in asks]

        systemctl("stop", UNIT)  # drop_in has restarted the socket, and with it the service
        before, since = show("ActiveState"), now()
        began = time.monotonic()
        first = answers()
        facts = {
            "asks": [ask.decode() for ask in asks],
            "before": before,
            "seconds": time.monotonic() - began,
            "first": first,
            "state": until(lambda: show("ActiveState") == "active" and "active"),
            "journal": messages(journal("--unit", UNIT, since=since)),
        }
        replaced = main_pid()
        with subprocess.Popen(["systemctl", "restart", UNIT]) as restart:
            until(lambda: not Path(f"/proc/{replaced}").exists())
            facts["restarted"] = answers()
        facts["status"] = restart.returncode
        facts["stream"] = echoes(connect())
    return facts
