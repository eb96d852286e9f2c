"""Wrong command lines of the daemon: one line each, which says what to do."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactor

from echod.daemon.errors import CannotServe
from echod.daemon.listeners.kinds import echo_listener
from echod.daemon.options import Options
from echod.daemon.optiontable import TOPICS
from echod.udp import EchoDatagrams
from tests import ROOT

OF_PYTHON = re.compile(
    r"Traceback|Error\b|Exception|\(\)|0x[0-9a-f]|<class|__|\b_[a-z]|invalid (literal|argument)"
    r"|\b(None|object|argument|keyword|positional|int|str|tuple|NoneType|errno|bind|getaddrinfo)\b"
)
"""Python's terms, which a user need not know."""

NUMBER = "takes a whole number from 0 to 65535, not"
DURATION = "takes a duration from 1ms to 250000h, such as 250ms, 30s, 10m or 2h, not"
RATE = "takes a number of datagrams a second from 0.001 to 1000000000, not"
COUNT = "takes a whole number from 1 to 1000000000, not"
INSTEAD = "--listen replaces --port and --interface: give one or the other"

LINES: dict[str, str] = {
    # Options that are malformed.
    "echod --prot 7": "there is no option --prot; see echod --help",
    "echod -p 7": "there is no option -p; see echod --help",
    "echod -n": "there is no option -n; see echod --help",
    "echod --pidfile=x": "there is no option --pidfile; see echod --help",
    "echod --port": "--port needs a value, PORT; see echod --help",
    "echod --listen": "--listen needs a value, ENDPOINT",
    "echod --idle": "--idle-timeout needs a value, DURATION",
    "echod --quiet=yes": "--quiet takes no value",
    "echod --help=port": "--help takes no value",
    "echod --m 7": "--m may mean --max-connections or --max-connections-per-peer or --metrics",
    "echod 7": "takes no arguments, not '7'",
    "echod --port 0 start": "takes no arguments, not 'start'",
    "twistd -n echod --prot 7": "there is no option --prot; see twistd -n echod --help",
    "twistd -n echod --pidfile x": "--pidfile is an option of twistd: give it before echod",
    "twistd echod -n": "-n is an option of twistd: give it before echod",
    "twistd -n echod --reactor poll": "--reactor is an option of twistd: give it before echod",
    # Values.
    "echod --port http": f"--port {NUMBER} 'http'",
    "echod --port -1": f"--port {NUMBER} '-1'",
    "echod --port 65536": f"--port {NUMBER} '65536'",
    "echod --port 7,8": f"--port {NUMBER} '7,8'",
    "echod --port ''": f"--port {NUMBER} ''",
    "echod --port \u0667": f"--port {NUMBER} '\\u0667'",
    "echod --interface eth0": "--interface takes an IPv4 or IPv6 address of this machine",
    "echod --interface localhost": "--interface takes an IPv4 or IPv6 address of this machine",
    "echod --interface 127.0.0.1:7": "--interface takes an IPv4 or IPv6 address of this machine",
    "echod --interface ''": "--interface takes an IPv4 or IPv6 address of this machine",
    "echod --port 0 --interface fe80::1": "fe80::1",
    "echod --interface 0.0.0.0 --interface ::": "leave out 0.0.0.0",
    "echod --idle-timeout 0": f"--idle-timeout {DURATION} '0'",
    "echod --idle-timeout 1e-320": f"--idle-timeout {DURATION} '1e-320'",
    "echod --idle-timeout never": f"--idle-timeout {DURATION} 'never'",
    "echod --stall-timeout inf": f"--stall-timeout {DURATION} 'inf'",
    "echod --stall-timeout 10d": f"--stall-timeout {DURATION} '10d'",
    "echod --handshake-timeout -1": f"--handshake-timeout {DURATION} '-1'",
    "echod --drain-timeout nan": "--drain-timeout takes a duration from 0s to 250000h",
    "echod --drain-timeout '5 s'": "--drain-timeout takes a duration from 0s to 250000h",
    "echod --udp-longest 9e99": f"--udp-longest {DURATION} '9e99'",
    "echod --max-connections 0": f"--max-connections {COUNT} '0'",
    "echod --max-connections 9e99": f"--max-connections {COUNT} '9e99'",
    "echod --max-connections-per-peer many": f"--max-connections-per-peer {COUNT} 'many'",
    "echod --udp-rate 1e-320": f"--udp-rate {RATE} '1e-320'",
    "echod --udp-rate 10/s": f"--udp-rate {RATE} '10/s'",
    "echod --udp-total-rate nan": f"--udp-total-rate {RATE} 'nan'",
    "echod --reactor nonsense": "--reactor takes an event loop of Twisted",
    "echod --logger nonsense": "--logger takes the name of a function",
    # Options that exclude each other.
    "echod --listen tcp:0 --port 7": INSTEAD,
    "echod --listen tcp:0 --interface ::1": INSTEAD,
    # Endpoints.
    "echod --listen ''": "--listen '': ",
    "echod --listen 7": "--listen '7': ",
    "echod --listen localhost:7": "--listen 'localhost:7': ",
    "echod --listen quic:7": "--listen 'quic:7': ",
    "echod --listen tcp": "--listen 'tcp': ",
    "echod --listen tcp:http": "--listen 'tcp:http': ",
    "echod --listen tcp:70000": "--listen 'tcp:70000': ",
    "echod --listen tcp:-1": "--listen 'tcp:-1': ",
    "echod --listen tcp:0:backlog=many": "--listen 'tcp:0:backlog=many': ",
    "echod --listen tcp:0:interfaces=::": "--listen 'tcp:0:interfaces=::': ",
    "echod --listen tcp:0:interface=::1": "--listen 'tcp:0:interface=::1': ",
    "echod --listen tcp:0:1:2:3": "--listen 'tcp:0:1:2:3': ",
    r"echod --listen 'tcp6:0:interface=\:\:\:'": "--listen 'tcp6:0:interface=",
    r"echod --listen 'tcp6:0:interface=fe80\:\:1'": "--listen 'tcp6:0:interface=",
    "echod --listen unix": "--listen 'unix': it has no path",
    "echod --listen unix:x:mode=rw": "mode= takes an octal number from 0 to 777",
    "echod --listen udp": "it has no port",
    "echod --listen udp:x": f"port {NUMBER} 'x'",
    "echod --listen udp:65536": f"port {NUMBER} '65536'",
    "echod --listen udp:7:backlog=3": "there is no parameter 'backlog=3'",
    "echod --listen udp:7:interface=localhost": "interface= takes an IPv4 or IPv6 address",
    "echod --listen ssl:0": "it has no privateKey=",
    "echod --listen haproxy:udp:7": "haproxy: goes before one of tcp, tcp6, unix, systemd",
    "echod --listen systemd": "it takes systemd:name=NAME",
    "echod --faulty": "--faulty needs an endpoint and a plan, as in --faulty tcp:65433 'first",
    "echod --faulty tcp:0": "--faulty needs an endpoint and a plan",
    "echod --faulty tcp:0 --quiet": "--faulty needs an endpoint and a plan",
    "echod --faulty=tcp:0": "--faulty needs an endpoint and a plan",
    "echod --fault tcp:0 refuse": "--fault may mean --faulty or --faults",
    "echod --faults": "--faults needs a value, FILE",
    "echod --faults no": "--faults=no: No such file or directory",
    "echod --faults .": "--faults=.: Is a directory",
    "echod --faults pem": "--faults=pem: is not TOML: ",
    "echod --faulty tcp:0 refuse stray": "takes no arguments, not 'stray'",
    "echod --faulty quic:0 refuse": "--faulty 'quic:0': there is no endpoint 'quic'",
    "echod --faulty tcp:x refuse": f"--faulty 'tcp:x': port {NUMBER} 'x'",
    "echod --faulty haproxy:udp:7 drop": "haproxy: goes before one of tcp, tcp6, unix, systemd",
    "twistd -n echod --faulty tcp:0 refsue": "--faulty 'tcp:0': '^refsue': ",
    "echod --port 0 --control tcp:0": "--control needs a faulty port: add --faulty ENDPOINT PLAN",
    "echod --faulty tcp:0 refuse --control udp:0": "control is served on loopback, ",
    "echod --faulty tcp:0 refuse --control 9863": "control is served on loopback, ",
    "echod --metrics 9862": "--metrics '9862': ",
    "echod --metrics tcp": "--metrics 'tcp",
    "echod --metrics udp:9862": "--metrics 'udp:9862': ",
    "echod --metrics ssl:x": f"port {NUMBER} 'x'; it takes ssl:PORT:privateKey=FILE:certKey=FILE",
    "echod --metrics ssl:0:certkey=pem": "there is no parameter 'certkey=pem'; it takes ssl:PORT:",
    "echod --metrics ssl:0:interface=localhost": "interface= takes an IPv4 or IPv6 address",
    "echod --metrics ssl:systemd:name=a": "metrics are served on tcp:, tcp6:, unix: or ssl:, ",
    "echod --metrics systemd:domain=INET:index=0": "--metrics takes no systemd: endpoint",
}
"""Command lines with a mistake, and a part of the error about each."""

PLANS = r"""
first 2: ^refsue
^Refuse
first ^two: refuse
first^: refuse
first ^0: refuse
first ^-1: refuse
first ^99999999999999: refuse
first 2 ^refuse
first 2:^
^: refuse
^;
refuse;^; close
refuse^: first 2
refuse^, close
refuse ^close
refuse; seed^
seed ^x; refuse
every ^7: refuse
every ^0th: refuse
every 7th message^: damage
^connections 5 to 3: refuse
^150%: refuse
^-5%: refuse
after 10^: reset
after 10 ^bites: reset
after ^2d: reset
at most ^0 times: reset
delay^
delay ^200
delay 200ms +- ^x
delay normal 200ms^
throttle ^10kB
^slice 0 bytes
pad ^-1 bytes
greet ^hello
greet ^"hello
^insert ""
refuse ^#
first 2 ^conections: refuse
every 7th ^mesage of 64: damage
^frist 2: refuse
"""
"""Wrong plans, with a caret before the mistake."""

PLANS_THAT_DO_NOT_FIT = {
    "tcp:0": ("drop", "expired", "every datagram: damage"),
    "udp:0": ("refuse", "half-close", "message 1 of 64: damage", "after 10 bytes: damage"),
}
"""Plans that a port of another kind can have."""

for plan in PLANS.strip().splitlines():
    typed = shlex.quote(plan.replace("^", ""))
    LINES[f"echod --faulty tcp:0 {typed}"] = f"--faulty 'tcp:0': '{plan}': "
for endpoint, plans in PLANS_THAT_DO_NOT_FIT.items():
    for plan in plans:
        LINES[f"echod --faulty {endpoint} '{plan}'"] = f"--faulty '{endpoint}': "

REFUSED = {
    "echod --listen unix:/no/such/directory/x": "its directory must exist",
    "echod --listen unix:.": "remove it, or choose another path",
    "echod --listen udp:0:interface=192.0.2.1": "this machine has no such address",
    "echod --listen ssl:0:privateKey=pem:certKey=pem": "pem: there is no private key (PEM) in it",
    "echod --listen ssl:0:privateKey=no:certKey=no": "no: no such file",
    "echod --metrics ssl:0": "/server.pem: no such file",
    "echod --metrics ssl:0:privateKey=no:certKey=pem": "/no: no such file",
    "echod --metrics ssl:0:privateKey=pem": "/pem: there is no private key (PEM) in it",
    "echod --port 0 --metrics unix:/no/such/directory/x": "its directory must exist",
    "echod --port {port}": "address already in use",
    "echod --listen tcp:{port}:interface=127.0.0.1": "address already in use",
    "echod --listen udp:{udp}": "address already in use",
    "echod --faulty tcp:{port}:interface=127.0.0.1 refuse": "address already in use",
    "echod --faulty systemd:name=a refuse": "--faulty 'systemd:name=a': systemd passed no socket",
    "echod --port 0 --interface 192.0.2.1": "this machine has no such address",
    "echod --port 0 --metrics tcp:0:interface=192.0.2.1": "this machine has no such address",
    "twistd -n --pidfile /no/such/directory/x echod": "choose another place, or none (--pidfile=)",
    "twistd -n --logfile /no/such/directory/x echod": "--logfile /no/such/directory/x: ",
    "twistd -n echod --port {port}": "address already in use",
}
"""Command lines that this machine refuses."""


ALL = {**LINES, **REFUSED}


def check(line: str, error: str) -> None:
    """Check that the error about a command line is one line without Python's terms."""
    assert error.isascii(), error
    assert error.isprintable(), error
    assert not OF_PYTHON.search(error), (line, error)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[int, str]]]:
    """Run all command lines; return the exit status and the output of each."""
    directory = tmp_path_factory.mktemp("directory")
    (directory / "pem").write_text("no PEM\n")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(type=socket.SOCK_DGRAM) as udp,
    ):
        udp.bind(("127.0.0.1", 0))
        ports = {"port": tcp.getsockname()[1], "udp": udp.getsockname()[1]}
        done = subprocess.run(
            [sys.executable, "-m", "tests.programs.forking", directory],
            input=json.dumps([shlex.split(line.format_map(ports)) for line in ALL]),
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        yield dict(zip(ALL, json.loads(done.stdout), strict=True))
    assert {path.name for path in directory.iterdir()} == {"pem"}


def test_enough() -> None:
    """The table has 60 command lines or more, and 40 wrong plans."""
    assert len(LINES) - len(PLANS.strip().splitlines()) >= 60
    assert len(PLANS.strip().splitlines()) >= 40


@pytest.mark.parametrize("line", ALL)
def test_one_line(line: str, answers: dict[str, tuple[int, str]]) -> None:
    """A wrong command line gets one line that says what is wrong, with exit status 2.

    The status is 1 if the machine refuses it.
    """
    status, output = answers[line]
    program = "echod: " if line.startswith("echod") else "twistd echod: "
    mistakes = [each.partition(program)[2] for each in output.splitlines() if program in each]
    assert (status, len(mistakes)) == (1 if line in REFUSED else 2, 1), output
    assert "Traceback" not in output
    check(line, mistakes[0])
    assert ALL[line] in mistakes[0]


def refusal(call: Callable[[], object]) -> str:
    """Return the error of ``call``; empty if it succeeds."""
    try:
        call()
    except CannotServe as error:
        return error.why
    return ""


VALUES = st.one_of(
    st.text(max_size=8),
    st.from_regex(
        r"[-+]?[0-9]{0,20}\.?[0-9]{0,3}(e[-+]?[0-9]{1,4})?(ms|s|m|h|d|x)?", fullmatch=True
    ),
)
OPTIONS = [option.name for topic in TOPICS.values() for option in topic if option.value]


def words_of(name: str, value: str) -> tuple[str, ...]:
    return (f"--{name}", "tcp:0", value) if name == "faulty" else (f"--{name}={value}",)


@given(st.lists(st.tuples(st.sampled_from(OPTIONS), VALUES), max_size=3))
def test_any_options(given_options: list[tuple[str, str]]) -> None:
    """Any values of any options are accepted, or refused in one line."""
    words = [word for name, value in given_options for word in words_of(name, value)]
    error = refusal(lambda: Options().parseOptions(words))
    for _, value in given_options:
        error = error.replace(f"{value!a}", "")
    check(" ".join(words), error)


PARTS = ["", "0", "7", "x", "-1", "65536", "1.5", "::1", "interface=", "interface=::1", "backlog="]
PARTS += ["interface=127.0.0.1", "interface=eth0", r"interface=\:\:1", "backlog=5", "backlog=x"]
PARTS += ["mode=660", "mode=rw", "lockfile=2", "name=a", "domain=INET", "index=0", "index=x", "="]
PARTS += ["privateKey=no", "certKey=no", "clientCA=.", "tcp", "unix", "systemd", "/tmp", "a=b=c"]
KINDS = ["tcp", "tcp6", "unix", "udp", "ssl", "tls", "haproxy", "systemd", "stdio", "quic", ""]


@given(st.sampled_from(KINDS), st.lists(st.sampled_from(PARTS), max_size=4))
def test_any_endpoint(kind: str, parts: list[str]) -> None:
    """Any endpoint description is accepted, or refused in one line."""
    description = ":".join([kind, *parts])
    reactor: Any = MemoryReactor()
    error = refusal(lambda: echo_listener(reactor, EchoDatagrams(Clock()), description, []))
    check(description, error.replace(f"{description!a}", ""))
