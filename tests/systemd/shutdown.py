"""Scenarios: stop all units; the journal of the whole run."""

from __future__ import annotations

import re
import socket
import threading
import time

from certificates import both, tls
from system import (
    HOST,
    PORT,
    SOCKETS,
    TLS_PORT,
    UNIT,
    Facts,
    connect,
    journal,
    scenario,
    scrape,
    show,
    systemctl,
)


def states() -> dict[str, str]:
    return {unit: show("ActiveState", unit) for unit in (UNIT, *SOCKETS)}


@scenario
def stop_everything() -> Facts:
    facts: Facts = {}
    going = True
    late: list[str] = []
    stopped = threading.Event()

    def connect_repeatedly() -> None:
        while going:
            for port in (PORT, TLS_PORT, 9862):
                is_late = stopped.is_set()
                try:
                    with socket.create_connection((HOST, port), 0.1):
                        if is_late:
                            late.append(f"port {port} is open")
                except OSError:
                    pass

    with tls("tls"):
        systemctl("enable", "echod-metrics.socket")
        systemctl("restart", UNIT)
        facts["before"] = states()
        with connect() as client:
            client.sendall(b"?")
            assert client.recv(1) == b"?"
            connector = threading.Thread(target=connect_repeatedly)
            connector.start()
            try:
                systemctl("stop", "echod.socket")
                stopped.set()
                facts["finished"] = client.recv(1) == b""
                time.sleep(1)
            finally:
                going = False
                connector.join()
        facts["late"] = late
        facts["stopped"] = states()
        systemctl("start", "echod.socket")
        facts["started"] = states()
        scrape()
        facts["scraped"] = states()
        systemctl("stop", UNIT)
        facts["service stopped"] = states()
        facts["served again"] = both()
        systemctl("disable", "--now", "echod.socket", UNIT)
        facts["disabled"] = states()
        wanted = systemctl("list-dependencies", "--plain", "multi-user.target")
        facts["at boot"] = re.findall(r"echod\S*", wanted)
        systemctl("enable", "--now", "echod.socket")
        facts["enabled"] = states()
        wanted = systemctl("list-dependencies", "--plain", "multi-user.target")
        facts["at next boot"] = re.findall(r"echod\S*", wanted)
    return facts


@scenario
def whole_journal() -> Facts:
    # «(echod)» is a process of systemd that is about to execute echod.
    entries = [
        entry
        for entry in journal(f"_SYSTEMD_UNIT={UNIT}")
        if not str(entry["SYSLOG_IDENTIFIER"]).startswith("(")
    ]
    priorities: dict[str, int] = {}
    for entry in entries:
        priorities[entry["PRIORITY"]] = priorities.get(entry["PRIORITY"], 0) + 1
    texts = [str(entry["MESSAGE"]) for entry in entries]
    return {
        "lines": len(entries),
        "identifiers": sorted({str(entry["SYSLOG_IDENTIFIER"]) for entry in entries}),
        "priorities": priorities,
        "errors": [str(entry["MESSAGE"]) for entry in entries if int(entry["PRIORITY"]) < 4],
        "tracebacks": [text for text in texts if "Traceback" in text],
        "plugin cache": [text for text in texts if "plugin cache" in text],
        "timed": [text for text in texts if re.match(r"\[?\d{4}-\d\d-\d\d", text)],
        "prefixed": [text for text in texts if text.startswith("<")],
        "samples": [*dict.fromkeys(re.sub(r"\d+", "N", text) for text in texts)][:40],
    }
