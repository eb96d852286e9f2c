"""Scenarios: the privileges of the service, and its sandbox."""

from __future__ import annotations

import json
import re
from pathlib import Path

from system import HERE, PORT, UNIT, UNITS, Facts, journal, main_pid, now, run, scenario, systemctl


@scenario
def exposure() -> Facts:
    def figure(report: str) -> float:
        [found] = re.findall(r"exposure level for echod.service: ([0-9.]+)", report)
        return float(found)

    analyze = ("systemd-analyze", "security", "--no-pager")
    report = run(*analyze, UNIT)
    return {
        "figure": figure(report),
        "offline": figure(run(*analyze, "--offline=true", str(UNITS / UNIT))),
        "lacks": [line for line in report.splitlines() if line.startswith("✗")],
    }


@scenario
def rights() -> Facts:
    lines = Path(f"/proc/{main_pid()}/status").read_text(encoding="utf-8").splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    wanted = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Threads")
    return {name: status[name] for name in status if name in wanted or name.startswith("Cap")}


@scenario
def confinement() -> Facts:
    # The sandbox of echod.service, without its command and its supervision.
    attempts = f"/usr/bin/python3 {HERE}/confined.py {PORT}"
    unit = re.sub(
        r"(?m)^(Requires|StartLimit\w+|NotifyAccess|Restart|WatchdogSec|Timeout\w+)=.*\n",
        "",
        (UNITS / UNIT).read_text(encoding="utf-8"),
    )
    unit, count = re.subn(r"(?m)^ExecStart=.*$", f"ExecStart={attempts}", unit)
    unit, more = re.subn(r"(?m)^Type=.*$", "Type=oneshot", unit)
    assert count == more == 1
    (UNITS / "echod-confined.service").write_text(unit, encoding="utf-8")
    systemctl("daemon-reload")
    # A file system where every user may write.
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/srv")
    since = now()
    systemctl("start", "echod-confined.service")
    [line] = [
        entry["MESSAGE"] for entry in journal("_SYSTEMD_UNIT=echod-confined.service", since=since)
    ]
    freely = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--uid=nobody")
    return {"confined": json.loads(line), "free": json.loads(run(*freely, *attempts.split()))}
