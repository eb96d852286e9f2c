"""The units under a real systemd: it boots in a throw-away copy of this machine, as root.

``tests/systemd/boot.sh`` makes the copy, installs echod as docs/operating.rst says, and boots it.
``tests/systemd/guest.py`` runs the scenarios there, and each test here checks the facts of one.
``tox -e systemd`` prints the figures.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes

from tests import ROOT
from tests.docs.test_all import blocks, section, tree

LIMIT = 300
"""Seconds for the boot and all scenarios, which take less than 60."""

SOURCE = ("echod", "twisted", "systemd", "setup.cfg", "pyproject.toml", "README.rst", "LICENSE")

PROGRAMS = {
    "systemctl": "systemd",
    "systemd-nspawn": "systemd-container",
    "dbus-daemon": "dbus",
    "openssl": "openssl",
    "unshare": "util-linux",
}

MOUNT = """
mount -t tmpfs tmpfs "$1" && mkdir "$1/upper" "$1/work" "$1/root" &&
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root" &&
test -x "$1/root/usr/bin/python3"
"""

Facts = dict[str, Any]


def missing(directory: Path) -> list[str]:
    """Return what this machine lacks."""
    lacks = [] if os.geteuid() == 0 else ["root's rights"]
    lacks += [f"Debian's {name}" for program, name in PROGRAMS.items() if not shutil.which(program)]
    if not list(Path("/usr/lib").glob("python3*/ensurepip")):
        lacks.append("Debian's python3-venv")
    if not lacks:
        mounting = ["unshare", "--mount", "sh", "-c", MOUNT, "sh", str(directory)]
        done = subprocess.run(mounting, capture_output=True, text=True, check=False)
        if done.returncode:
            lacks.append(f"an overlay of / with all of /usr ({done.stderr.strip()})")
    return lacks


def boot(directory: Path) -> str:
    """Boot the system in ``directory``, until it has powered off, and return its console."""
    script = Path(__file__).parent / "boot.sh"
    with (
        (directory / "console").open("w+", encoding="utf-8", errors="replace") as console,
        # It ends with this process, and Ctrl-C does not end it before it has cleaned up.
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "bash", str(script), str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            process.wait(LIMIT)
        finally:
            process.terminate()
            process.wait()
        console.seek(0)
        return console.read()


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Facts]]:
    """Return the facts of each scenario by its name; "" has the console and the journal."""
    directory = tmp_path_factory.mktemp("systemd")
    (directory / "machine").mkdir()
    lacks = missing(directory / "machine")
    if lacks:
        reason = f"a throw-away systemd needs {', '.join(lacks)}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    checkout, guest = directory / "checkout", directory / "guest"
    checkout.mkdir()
    for name in SOURCE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    shutil.copytree(Path(__file__).parent, guest)
    guest.chmod(0o755)  # confined.py runs there without privileges
    operating = tree(ROOT / "docs" / "operating.rst")
    install = blocks(section(operating, "Install"), "sh")[0].splitlines()
    for file, booted in (("install", False), ("start", True)):
        lines = [line for line in install if line.startswith("systemctl") == booted]
        (guest / file).write_text("\n".join(lines), encoding="utf-8")
    for name, block in tls_files(section(operating, "TLS")).items():
        (guest / name).write_text(block, encoding="utf-8")
    console = boot(directory)
    facts = {"": {"error": "\n".join([console, *read(directory / "journal")[-100:]])}}
    facts |= json.loads("\n".join(read(guest / "facts.json")) or "{}")
    yield facts
    shutil.rmtree(directory)


def tls_files(documented: nodes.Node) -> dict[str, str]:
    """Return the document's commands and drop-ins for TLS, as files for the guest."""
    _, enable, readable, *_ = blocks(documented, "sh")
    credentials, readable_conf = blocks(documented, "ini")
    return {
        "tls.conf": credentials,
        "tls.sh": "",
        "tls-enable.sh": enable,
        "tls-reload.conf": readable_conf,
        "tls-reload.sh": readable,
    }


def read(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


@pytest.fixture
def facts(request: pytest.FixtureRequest, booted: dict[str, Facts]) -> Facts:
    """Return the facts of the scenario that the test is named after."""
    found = booted.get(request.function.__name__.removeprefix("test_"), booted[""])
    if "error" in found:
        pytest.fail(found["error"], pytrace=False)
    return found


def test_activation(facts: Facts) -> None:
    """The first connection starts the service, and has its echo within 3 s (normally 0.3 s)."""
    print(f"{facts['seconds']:.3f} s from connect to echo, {facts['again']:.4f} s the next time")
    assert facts["verify"] == ""
    assert (facts["socket"], facts["before"], facts["state"]) == ("active", "inactive", "active")
    assert facts["seconds"] < 3
    # systemd logs «Started» after the service has sent READY=1.
    assert facts["type"] == "notify"
    texts = [line.partition(">")[2] for line in facts["journal"]]
    started = next(index for index, line in enumerate(texts) if line.startswith("Started echod"))
    for address in ("127.0.0.1:65432", "[::1]:65432"):
        assert texts.index(f"listening on tcp {address}") < started


def test_restarts(facts: Facts) -> None:
    """20 restarts under 50 clients: none refused, none reset, no reply short."""
    clients, took = facts["clients"], facts["took"]
    print(
        f"{clients['served']} exchanges, {clients['bytes']} bytes: {clients['refused']} refused, "
        f"{clients['reset']} reset, {clients['short']} short; the slowest {facts['slowest']:.2f} s"
    )
    print(f"{len(took)} restarts of {min(took):.2f} to {max(took):.2f} s each")
    assert len(took) == 20
    assert facts["processes"] == 21
    assert clients["served"] > 1000
    assert {name: clients[name] for name in ("refused", "reset", "short", "late", "other")} == {
        "refused": 0,
        "reset": 0,
        "short": 0,
        "late": 0,
        "other": 0,
    }, facts["others"]
    assert facts["state"] == "active"


def test_watchdog(facts: Facts) -> None:
    """A process that hangs is replaced within twice WatchdogSec=, and serves the waiting client."""
    print(f"WatchdogSec=2: served {facts['waited']:.2f} s after SIGSTOP")
    assert facts["shipped"] == "30s"
    assert facts["in force"] == "2s"
    assert facts["seconds"] < 4
    assert facts["restarted"] == 1
    assert facts["other process"]
    assert any("Watchdog timeout" in line for line in facts["journal"])
    assert any("doPoll" in line for line in facts["journal"]), "where it hung"


def test_killed(facts: Facts) -> None:
    """A process that is killed is replaced: the next client gets an echo within 2 s."""
    print("SIGKILL: served after", ", ".join(f"{each:.2f}" for each in facts["seconds"]), "s")
    assert max(facts["seconds"]) < 2  # 0.5 s when the machine is quiet
    assert facts["restarted"] == len(facts["seconds"]) == 5


def test_stop_with_replies(facts: Facts) -> None:
    """A stop while two slow readers have 12 MiB each to read: all of it arrives, then FIN."""
    print(f"{facts['received']} bytes read in {facts['read for']:.1f} s while it stopped")
    assert facts["received"] == [12 << 20, 12 << 20]
    assert facts["whole"] == [True, True]
    assert facts["stopped after"] > 0.9 * facts["read for"] > 1
    assert (facts["status"], facts["result"]) == (0, "success")


def test_stop_idle(facts: Facts) -> None:
    """A stop with 1,000 idle connections takes less than 1 s, and each ends with FIN."""
    print(f"stopped with 1000 idle connections in {facts['seconds']:.2f} s")
    assert facts["seconds"] < 1
    assert facts["finished"] == 1000
    assert facts["result"] == "success"


def test_exposure(facts: Facts) -> None:
    """``systemd-analyze security echod.service`` reports an exposure of 0.6 or less."""
    print(f"exposure {facts['figure']}, offline {facts['offline']}; exposed by:")
    print(*facts["lacks"], sep="\n")
    assert facts["figure"] <= 0.6
    assert facts["offline"] <= 0.6


def test_rights(facts: Facts) -> None:
    """The process is not root, holds no capability and can gain none."""
    print(facts)
    assert len(facts["Uid"]) == len(facts["Gid"]) == 4
    assert len(set(facts["Uid"])) == 1
    assert int(facts["Uid"][0]) >= 61184  # the range of DynamicUser=
    capabilities = {name: value for name, value in facts.items() if name.startswith("Cap")}
    assert set(capabilities) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert set(map(tuple, capabilities.values())) == {("0" * 16,)}
    assert facts["NoNewPrivs"] == ["1"]
    assert facts["Seccomp"] == ["2"]


def test_confinement(facts: Facts) -> None:
    """The sandbox allows no write, no network, and no sight of another process.

    It allows systemd's notification socket, and no socket of another service. The same attempts
    succeed without the sandbox, as the user nobody.
    """
    confined, free = facts["confined"], facts["free"]
    for name, found in facts.items():
        if isinstance(found, dict):
            print(f"{name}: {found}")
    assert confined["directories"] > 0.5 * free["directories"] > 100
    assert confined["made in"] == []
    assert confined["opened"] == []
    assert confined["families"] == []
    assert not confined["connected"]
    assert confined["reached"] == ["/run/systemd/notify"]
    assert confined["processes"] == [confined["pid"]]
    assert {"/tmp", "/var/tmp", "/dev/shm", "/srv"} <= set(free["made in"])
    assert {"AF_INET", "AF_INET6"} <= set(free["families"])
    assert free["connected"]
    assert "/run/dbus/system_bus_socket" in free["reached"]
    assert len(free["processes"]) > 1


def test_refusals(facts: Facts) -> None:
    """``journalctl -u echod -p warning`` shows the refused connections, and nothing else."""
    print(*facts["all"], sep="\n")
    assert facts["refused"] == 3
    counts = []
    for line in facts["warnings"]:
        refused = re.match(r"<4>refused (\d) connections?: max-connections \1\b", line)
        assert refused, line
        counts.append(int(refused[1]))
    assert sum(counts) == 3
    rest = [line for line in facts["all"] if "refused" not in line]
    assert "<6>listening on tcp 127.0.0.1:65432" in rest
    assert all(line.startswith("<6>") for line in rest)


def test_wrong_option(facts: Facts) -> None:
    """An unknown option: one error line, no restart; once corrected, the service starts."""
    print(*facts["errors"], sep="\n")
    [error] = facts["errors"]
    assert error.startswith("<3>echod: ")
    assert "--wrong" in error
    assert (facts["state"], facts["socket"]) == ("failed", "active")
    assert facts["restarted"] == 0
    assert facts["corrected"]


def test_own_ports(facts: Facts) -> None:
    """An option that opens a port: one error line names the sandbox and the units."""
    for options, lines in facts["errors"].items():
        [error] = lines
        print(error)
        if "unix:" in options:
            assert "read-only file system: " in error
        else:
            assert "the sandbox of echod.service allows no port of its own" in error
        assert "in echod.socket" in error
        assert options.split()[0] in error
        assert "--interface" not in error or "--interface" in options
    assert facts["corrected"]


def test_status(facts: Facts) -> None:
    """``systemctl status echod`` shows the number of open connections."""
    print(facts["texts"])
    counts = ("0 connections", "1 connection", "2 connections", "3 connections", "0 connections")
    assert facts["texts"] == [f"{count} open" for count in counts]
    assert 'Status: "3 connections open"' in facts["report"]


def test_metrics(facts: Facts) -> None:
    """The metrics count the bytes that the clients counted, and have the process's figures.

    Their socket is enabled with the unit's command, while the service runs.
    """
    samples = facts["samples"]
    print(facts["command"])
    print({name: value for name, value in samples.items() if "bytes" in name or "process" in name})
    assert facts["counted"] == 1_000_000
    assert samples["echod_received_bytes_total"] == 1_000_000
    assert samples["echod_sent_bytes_total"] == 1_000_000
    assert samples["process_cpu_seconds_total"] > 0
    assert samples["process_start_time_seconds"] > 1_600_000_000


def test_other_sockets(facts: Facts) -> None:
    """A drop-in with port 7 and a UNIX socket: both echo before and after a restart."""
    print(facts)
    assert facts["ipv6"]
    assert facts["before"] == facts["after"] == [True, True, True]
    assert facts["same file"]
    assert facts["other process"]
    assert facts["old port"] != 0
    assert facts["back"]


def test_datagrams(facts: Facts) -> None:
    """With ``ListenDatagram=``, a datagram starts the service, and is answered, as are later ones.

    Datagrams that arrive during a restart are answered after it. TCP is served, too.
    """
    print(f"{len(facts['first'])} answers {facts['seconds']:.3f} s after the first datagram")
    assert (facts["before"], facts["state"]) == ("inactive", "active")
    assert facts["first"] == facts["restarted"] == facts["asks"]
    assert facts["seconds"] < 3
    assert "<6>listening on udp 127.0.0.1:65432" in facts["journal"]
    assert facts["status"] == 0
    assert facts["stream"]
    assert facts["took altogether"] < 15


def test_tls_restart(facts: Facts) -> None:
    """TLS with credentials, as documented, beside the plain ports; a restart renews it."""
    print(*facts["journal"], sep="\n")
    assert facts["served"] == facts["renewed"] == [True] * 4
    assert not facts["old"], "the server still has the old certificate"
    assert facts["other process"]
    for endpoint in ("tls 127.0.0.1:65433", "tls [::1]:65433", "tcp 127.0.0.1:65432"):
        assert f"<6>listening on {endpoint}" in facts["journal"]


def test_tls_reload(facts: Facts) -> None:
    """TLS with readable files: ``systemctl reload`` renews it, and connections stay open."""
    print(*facts["journal"], sep="\n")
    assert facts["served"] == facts["renewed"] == [True] * 4
    assert facts["same process"]
    assert facts["held"]
    assert any(line.endswith(": certificates loaded") for line in facts["journal"])


def test_no_certificate(facts: Facts) -> None:
    """Without its credential's file the service fails, without a restart; the ports stay open."""
    print(*facts["journal"], sep="\n")
    assert (facts["state"], facts["socket"], facts["status"]) == ("failed", "active", "243")
    assert facts["restarted"] == 0
    assert facts["corrected"]


def test_stop_everything(facts: Facts) -> None:
    """``systemctl stop echod.socket`` stops every unit, and no client or scrape starts one.

    Connections are drained. A start brings all sockets back. If only the service is stopped, the
    next connection starts it. After ``disable --now`` the next boot starts no unit.
    """
    sockets = ("echod.socket", "echod-metrics.socket", "echod-tls.socket")
    active, inactive = dict.fromkeys(sockets, "active"), dict.fromkeys(sockets, "inactive")
    assert facts["before"] == {"echod.service": "active", **active}
    assert facts["finished"]
    assert facts["late"] == []
    assert facts["stopped"] == {"echod.service": "inactive", **inactive}
    assert facts["started"] == {"echod.service": "inactive", **active}
    assert facts["scraped"] == {"echod.service": "active", **active}
    assert facts["service stopped"] == {"echod.service": "inactive", **active}
    assert facts["served again"] == [True] * 4
    assert facts["disabled"] == {"echod.service": "inactive", **inactive}
    assert facts["at boot"] == []
    assert facts["enabled"] == {"echod.service": "inactive", **active}
    assert facts["at next boot"] == ["echod.socket"]


def test_whole_journal(facts: Facts) -> None:
    """The whole run logs no traceback, no plugin cache, and no timestamp of its own."""
    print(f"{facts['lines']} lines by priority: {facts['priorities']}")
    print(*facts["samples"], sep="\n")
    assert facts["lines"] > 1000
    assert facts["identifiers"] == ["echod"]
    assert facts["tracebacks"] == []
    assert facts["plugin cache"] == []
    assert facts["timed"] == []
    assert facts["prefixed"] == []
    assert set(facts["priorities"]) == {"3", "4", "6"}
    # The wrong option, and the stack of the process that the watchdog ended.
    expected = "echod: |Fatal Python error: Aborted|Current thread|  File |Extension modules|$"
    assert [line for line in facts["errors"] if not re.match(expected, line)] == []
