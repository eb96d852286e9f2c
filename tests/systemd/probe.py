"""Goes through the life of the units, inside the booted system, and writes down what happened.

Nothing is judged here: each scenario returns facts, which tests/systemd/test_units.py reads from
``/probe/facts.json``. Only the standard library is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UNITS = Path("/etc/systemd/system")
UNIT = "echod.service"
HOST, PORT = "127.0.0.1", 65432
SO_SNDBUFFORCE = 32  # of asm-generic/socket.h; Python has no name for it
METRICS = "http://127.0.0.1:9862/metrics"
SOCKETS = ("echod.socket", "echod-metrics.socket", "echod-tls.socket")
TLS_PORT = 65433
CERTIFICATE = Path("/etc/echod/cert.pem")
MIB = 1 << 20
LIMIT = 60  # seconds for one scenario
PATIENCE = 15.0  # seconds for anything that should take less than one

Facts = dict[str, Any]
SCENARIOS: dict[str, Callable[[], Facts]] = {}


def scenario(function: Callable[[], Facts]) -> Callable[[], Facts]:
    SCENARIOS[function.__name__] = function
    return function


# What the scenarios do it with.


def run(*command: str, check: bool = True) -> str:
    """Return what ``command`` prints; what it complains about is in the exception."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def systemctl(*words: str) -> str:
    return run("systemctl", *words)


def show(name: str, unit: str = UNIT) -> str:
    return systemctl("show", "--value", f"--property={name}", unit).strip()


def main_pid() -> int:
    pid = int(show("MainPID"))
    if pid == 0:  # to signal it would be to signal the probe itself
        raise RuntimeError(f"{UNIT} is {show('ActiveState')}, with no process")
    return pid


def until(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + patience
    while not (answer := what()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience} s")
        time.sleep(0.01)
    return answer


def until_status(text: str) -> str:
    until(lambda: show("StatusText") == text)
    return show("StatusText")


def connect(host: str = HOST, port: int = PORT) -> socket.socket:
    return socket.create_connection((host, port), PATIENCE)


def connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(path)
    return sock


def receive_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while part := sock.recv(1 << 16):
        received += part
    return bytes(received)


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    """Tell whether ``data`` comes back, on a connection of its own."""
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock) == data


def shell(name: str) -> None:
    """Run each line of a documented block of commands."""
    for command in (HERE / name).read_text(encoding="utf-8").splitlines():
        run("/bin/bash", "-euc", command)


def first_echo() -> float:
    """Return the seconds from connect to the first byte of the reply."""
    began = time.monotonic()
    with connect() as client:
        client.sendall(b"?")
        assert client.recv(1) == b"?"
        return time.monotonic() - began


def now() -> str:
    """Return the time of day, as journalctl takes it."""
    return f"@{time.time():.6f}"


def journal(*words: str, since: str = "@0") -> list[Facts]:
    """Return entries of the journal, in the order in which they came."""
    run("journalctl", "--sync")
    lines = run("journalctl", "--quiet", "--output=json", "--all", f"--since={since}", *words)
    return [json.loads(line) for line in lines.splitlines()]


def messages(entries: list[Facts]) -> list[str]:
    return [f"<{entry['PRIORITY']}>{entry['MESSAGE']}" for entry in entries]


@contextmanager
def drop_in(text: str, unit: str = UNIT) -> Iterator[None]:
    """Let a drop-in, as ``systemctl edit`` makes it, be in force within."""
    directory = UNITS / f"{unit}.d"
    directory.mkdir()
    (directory / "override.conf").write_text(text, encoding="utf-8")
    restart = ("restart", "echod.socket" if unit.endswith(".socket") else UNIT)
    try:
        systemctl("daemon-reload")
        systemctl(*restart)
        yield
    finally:
        (directory / "override.conf").unlink()
        directory.rmdir()
        systemctl("daemon-reload")
        systemctl(*restart)


# What happens, in this order.


@scenario
def activation() -> Facts:
    shell("start")
    before, since = show("ActiveState"), now()
    seconds = first_echo()
    return {
        "before": before,
        "socket": show("ActiveState", "echod.socket"),
        "seconds": seconds,
        "state": show("ActiveState"),
        "type": show("Type"),
        "journal": messages(journal("--unit", UNIT, since=since)),
        "verify": run("/bin/bash", "-c", "systemd-analyze verify /etc/systemd/system/echod* 2>&1"),
        "again": first_echo(),
    }


@scenario
def restarts() -> Facts:
    command = [sys.executable, str(HERE / "clients.py"), HOST, str(PORT), "25"]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)
    ]
    pids, took = {main_pid()}, []
    try:
        for count in range(20):
            # Half of them as soon as the last one is done, half in the midst of service.
            for _ in range(100 * (count % 2)):
                first_echo()
            began = time.monotonic()
            systemctl("restart", UNIT)
            took.append(time.monotonic() - began)
            pids.add(main_pid())
    finally:
        counts = [json.loads(client.communicate(timeout=LIMIT)[0]) for client in clients]
    summed = {
        name: sum(count[name] for count in counts)
        for name in ("served", "refused", "reset", "short", "late", "other", "bytes")
    }
    return {
        "clients": summed,
        "slowest": max(count["slowest"] for count in counts),
        "others": [other for count in counts for other in count["others"]],
        "processes": len(pids),
        "took": took,
        "state": show("ActiveState"),
    }


@scenario
def watchdog() -> Facts:
    shipped = show("WatchdogUSec")
    with drop_in("[Service]\nWatchdogSec=2\n"):
        since = now()
        in_force = show("WatchdogUSec")
        stopped, restarts = main_pid(), int(show("NRestarts"))
        began = time.monotonic()
        os.kill(stopped, signal.SIGSTOP)
        waited = first_echo()
        until(lambda: show("ActiveState") == "active")
        return {
            "shipped": shipped,
            "in force": in_force,
            "waited": waited,
            "seconds": time.monotonic() - began,
            "restarted": int(show("NRestarts")) - restarts,
            "other process": main_pid() != stopped,
            "journal": messages(journal("--unit", UNIT, since=since)),
        }


@scenario
def killed() -> Facts:
    took = []
    restarts = int(show("NRestarts"))
    for _ in range(5):
        os.kill(main_pid(), signal.SIGKILL)
        took.append(first_echo())
        until(lambda: show("ActiveState") == "active")
    return {"seconds": took, "restarted": int(show("NRestarts")) - restarts}


@scenario
def stop_owing() -> Facts:
    data = os.urandom(12 * MIB)  # the kernels at both ends may hold 8 of it
    clients = []
    for half_close in (True, False):
        client = connect()
        # Room for all of it, so that it is all sent before the first byte is read.
        client.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 32 * MIB)
        client.sendall(data)
        if half_close:
            client.shutdown(socket.SHUT_WR)
        clients.append(client)
    received: list[bytes] = [b"", b""]

    def read_slowly(index: int) -> None:
        parts = []
        try:
            while part := clients[index].recv(256 << 10):
                parts.append(part)
                time.sleep(0.06)
        finally:
            received[index] = b"".join(parts)

    until(lambda: show("StatusText").startswith("2 "))
    readers = [threading.Thread(target=read_slowly, args=[index]) for index in (0, 1)]
    began = time.monotonic()
    with subprocess.Popen(["systemctl", "stop", UNIT], stderr=subprocess.DEVNULL) as stop:
        until(lambda: show("ActiveState") == "deactivating")
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        read = time.monotonic() - began
        stop.wait(LIMIT)
    return {
        "sent": len(data),
        "received": [len(each) for each in received],
        "whole": [each == data for each in received],
        "read for": read,
        "stopped after": time.monotonic() - began,
        "status": stop.returncode,
        "result": show("Result"),
    }


@scenario
def stop_idle() -> Facts:
    clients = [connect() for _ in range(1000)]
    until_status("1000 connections open")
    began = time.monotonic()
    systemctl("stop", UNIT)
    seconds = time.monotonic() - began
    finished = sum(client.recv(1) == b"" for client in clients)
    for client in clients:
        client.close()
    return {"seconds": seconds, "finished": finished, "result": show("Result")}


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
    # Under all that echod.service says, but for what it runs and how that is looked after.
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
    # A disk on which everybody may write.
    run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/srv")
    since = now()
    systemctl("start", "echod-confined.service")
    [line] = [
        entry["MESSAGE"] for entry in journal("_SYSTEMD_UNIT=echod-confined.service", since=since)
    ]
    freely = ("systemd-run", "--quiet", "--wait", "--pipe", "--collect", "--uid=nobody")
    return {"confined": json.loads(line), "free": json.loads(run(*freely, *attempts.split()))}


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
        # What was refused within a second of the first is one line, at its end.
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
def told_wrong() -> Facts:
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
    told = [until_status("0 connections open")]
    clients = []
    for count in (1, 2, 3):
        clients.append(connect())
        told.append(until_status(f"{count} connection{'s' if count != 1 else ''} open"))
    report = systemctl("status", "--no-pager", UNIT)
    for client in clients:
        client.close()
    told.append(until_status("0 connections open"))
    return {"told": told, "report": [line.strip() for line in report.splitlines()]}


def scrape() -> dict[str, float]:
    with urllib.request.urlopen(METRICS, timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


@scenario
def metrics() -> Facts:
    [said] = re.findall(
        r"`(systemctl enable echod-metrics.*)`",
        (UNITS / "echod-metrics.socket").read_text(encoding="utf-8"),
    )
    run("/bin/bash", "-euc", said)
    counted = 0
    for size in (1, 99, 999_900):
        data = os.urandom(size)
        assert echoes(connect(), data)
        counted += size
    until(lambda: show("StatusText") == "0 connections open")
    samples = scrape()
    return {"said": said, "counted": counted, "samples": samples}


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

        systemctl("stop", UNIT)  # a restart of the socket is one of the service too
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


def issue() -> None:
    """Put another key, and a certificate that it signs itself, in the place of the last."""
    CERTIFICATE.parent.mkdir(exist_ok=True)
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-subj", "/CN=localhost"),
        *("-out", str(CERTIFICATE), "-keyout", str(CERTIFICATE.with_name("key.pem"))),
    )


@contextmanager
def tls(name: str) -> Iterator[None]:
    """Serve TLS within, as the document says: ``name`` is that of the drop-in."""
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
    """Tell whether ``text`` comes back over TLS, from a server with the certificate of now."""
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
    """Tell what is served: TLS over IPv4 and IPv6, and the plain ports."""
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


def states() -> dict[str, str]:
    return {unit: show("ActiveState", unit) for unit in (UNIT, *SOCKETS)}


@scenario
def stop_everything() -> Facts:
    facts: Facts = {}
    going = True
    late: list[str] = []
    stopped = threading.Event()

    def knock() -> None:
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
            knocker = threading.Thread(target=knock)
            knocker.start()
            try:
                systemctl("stop", "echod.socket")
                stopped.set()
                facts["finished"] = client.recv(1) == b""
                time.sleep(1)
            finally:
                going = False
                knocker.join()
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
    # «(echod)» is systemd itself, until it has executed that.
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


def facts_of(name: str, function: Callable[[], Facts]) -> Facts:
    """Return the facts of one scenario, or how it failed."""
    since, began = now(), time.monotonic()
    signal.alarm(LIMIT)
    try:
        if name != "activation":  # which begins with nothing; the others after a failure, maybe
            systemctl("reset-failed", "echod*")
            systemctl("start", "echod.socket")
            first_echo()
        facts = function()
    except Exception:
        lines = messages(journal("--unit=echod*", "--lines=60", since=since))
        facts = {"error": traceback.format_exc() + "\n".join(lines)}
    signal.alarm(0)
    took = time.monotonic() - began
    print(f"{name}: {took:.1f} s", flush=True)
    return {**facts, "took altogether": took}


def give_up(*_: object) -> None:
    raise TimeoutError(f"the scenario takes more than {LIMIT} s")


def main() -> None:
    signal.signal(signal.SIGALRM, give_up)
    facts: dict[str, Facts] = {}
    for name, function in SCENARIOS.items():
        facts[name] = facts_of(name, function)
        (HERE / "facts.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
