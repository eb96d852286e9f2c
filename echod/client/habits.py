"""Options of other tools, typed from habit, and what to type here instead.

The tools are ping(8), irtt(1), iperf3(1), wrk, fortio and nc(1).
"""

from __future__ import annotations

from typing import Final

OUT: Final = "leave it out"

HABITS: Final = {
    "ping": {
        "-A -f": "type -i 1ms, or use load",
        "-d": "type -w for a time",
        "-l": "type -s for a size, or use load",
        "-p": "type -e for a payload, HOST:PORT for a port",
        "-L -N -R -S -T -U -a -b -m -r": OUT,
    },
    "load": {
        "-c": "type -C for connections, -n for messages",
        "-P --parallel --threads": "type -C for connections",
        "-t --time": "type -d for a time, -C for threads",
        "-R": "type -r for a rate; an echo comes back without it",
        "-b -qps --bitrate": "type -r for messages a second",
        "-k --bytes": "type -n for messages",
        "-O --omit": "type --warm-up",
        "-keepalive": "type --per-connection 1",
        "-i --interval": "type --json-lines for each second",
        "-A -F -H -N -T -U -X -Z -f -k -w -jitter -nocatchup -uniform --bidir --window": OUT,
    },
    "pipe": {"-w": "type -W", "-N -q": OUT},
}
"""By command, the options and what to do."""

ALL: Final = {
    "-B --bind --local": "type -I",
    "-J": "type --json",
    "-M --df": "type --dont-fragment",
    "-S": "type -Q",
    "-V -version --version": "type echod-client --version",
    "-verbose --verbose": "type -v",
    "-l --length -payload-size": "type -s",
    "-o --logfile": "type --json > FILE",
    "-p --port": "type HOST:PORT",
    "-payload --fill": "type -e for a payload",
    "-u --udp": "type udp:HOST:PORT",
    "--connect-timeout --wait": "type -W",
    "--reverse": OUT,
}
"""The same, for each command."""


def habit(command: str, option: str) -> str:
    """Return what to do instead of typing ``option``, or ``""``."""
    rows = {**ALL, **HABITS.get(command, {})}
    return next((rows[names] for names in reversed(rows) if option in names.split()), "")
