"""Scenarios: activation, restart, watchdog, crash, stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from system import (
    HERE,
    HOST,
    LIMIT,
    PORT,
    UNIT,
    Facts,
    connect,
    drop_in,
    first_echo,
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
    until_status,
)

SO_SNDBUFFORCE = 32  # of asm-generic/socket.h; Python has no name for it
MIB = 1 << 20


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
            # Every other restart follows the last one at once, the rest 100 echoes later.
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
def stop_with_replies() -> Facts:
    data = os.urandom(12 * MIB)  # more than the 8 MiB that the kernel's buffers hold
    clients = []
    for half_close in (True, False):
        client = connect()
        # A send buffer for all of it: everything is sent before the first byte is read.
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
