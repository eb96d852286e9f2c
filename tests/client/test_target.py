"""TARGET: accepted and refused forms, name lookup, addresses as text."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock

from echod.client.endpoint import BadTarget
from echod.client.errors import UNRESOLVED, error_word
from echod.client.runner import PreciseReactor
from echod.client.target import (
    Target,
    address_text,
    parse_target,
    resolve,
)
from tests import ROOT, TIMEOUT
from tests.authority import Authority


@pytest.mark.parametrize(
    ("text", "udp", "host", "port"),
    [
        ("localhost:7", False, "localhost", 7),
        ("192.0.2.1:65535", False, "192.0.2.1", 65535),
        ("[2001:db8::1]:7", False, "2001:db8::1", 7),
        ("[fe80::1%eth0]:7", False, "fe80::1%eth0", 7),
        ("[echo.example]:7", False, "echo.example", 7),
        ("udp:localhost:00007", True, "localhost", 7),
        ("udp:[::1]:7", True, "::1", 7),
        ("UDP:localhost:7", True, "localhost", 7),
        ("tcp:7", False, "tcp", 7),
        ("udp:7", False, "udp", 7),
        ("é.example:7", False, "é.example", 7),
        ("localhost", False, "localhost", 7),
        ("localhost:Echo", False, "localhost", 7),
        ("localhost:ssh", False, "localhost", 22),
        ("udp:localhost:ssh", True, "localhost", 22),
        ("tcp://localhost:9", False, "localhost", 9),
        ("UDP://localhost/", True, "localhost", 7),
        ("tcp:[::1]", False, "::1", 7),
        ("TCP:localhost:9", False, "localhost", 9),
        ("udp:localhost", True, "localhost", 7),
        ("::1", False, "::1", 7),
        ("udp:2001:db8::1", True, "2001:db8::1", 7),
        ("fe80::1%eth0", False, "fe80::1%eth0", 7),
        ("1:2:3:4:5:6:7:8:9", False, "1:2:3:4:5:6:7:8", 9),
    ],
)
def test_host_and_port(
    text: str, udp: bool, host: str, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name or an address, with a port; ``udp:`` before it selects UDP."""
    monkeypatch.setattr("socket.getservbyname", {"ssh": 22}.__getitem__)  # not on every machine
    assert parse_target(text) == Target(text, udp, host, port)


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("unix:/run/x", "unix:/run/x"),
        ("unix:///run/x", "unix:/run/x"),
        ("tls:localhost:7:endpoint=x", "tls:localhost:7:endpoint=x"),
        ("tls:host=localhost:port=7", "tls:host=localhost:port=7"),
        ("ssl:[::1]:7:caCertsDir=/x", r"ssl:\:\:1:7:caCertsDir=/x"),
        ("tcp:host=localhost:port=7", ""),
        ("odd:a:b=c", ""),
    ],
)
def test_endpoint(text: str, description: str) -> None:
    """Any other word with a colon is the type of a Twisted endpoint."""
    assert parse_target(text) == Target(text, description=description)


@pytest.mark.parametrize(
    ("text", "host", "description"),
    [
        ("tls:localhost:7", "localhost", "tls:localhost:7"),
        ("TLS://localhost:7/", "localhost", "tls:localhost:7"),
        ("tls://[::1]:7", "::1", r"tls:\:\:1:7"),
        ("tls:localhost:7:trustRoots=/x", "localhost", "tls:localhost:7:trustRoots=/x"),
    ],
)
def test_tls(text: str, host: str, description: str) -> None:
    """With a host and a port, the client connects, and Twisted's endpoint only adds TLS."""
    assert parse_target(text) == Target(text, False, host, 7, description)


@pytest.mark.parametrize(
    ("text", "host", "description"),
    [
        ("localhost", "localhost", ""),
        ("udp:localhost", "localhost", ""),
        ("tcp://localhost", "localhost", ""),
        ("::1", "::1", ""),
        ("[::1]", "::1", ""),
        ("tls:localhost", "localhost", "tls:localhost:9"),
        ("unix:x", None, "unix:x:9"),
    ],
)
def test_port_after(text: str, host: str | None, description: str) -> None:
    """The port may be a word of its own, as in ``telnet host 7``."""
    target = parse_target(text, "9")
    assert target == Target(
        f"{text} 9", text[:3] == "udp", host, 9 if host else 0, description=description
    )


def refused(text: str) -> str:
    with pytest.raises(BadTarget) as raised:
        parse_target(text).endpoint(Clock())
    line = str(raised.value)
    assert line.startswith(f"TARGET {text!r}")
    assert line.isprintable()
    return line


@pytest.mark.parametrize("port", ["0", "65536", "0065536", "9" * 5000, "0" * 5000 + "7"])
def test_bad_port(port: str) -> None:
    """An invalid port is quoted."""
    assert refused(f"localhost:{port}").endswith(f": a port is from 1 to 65535, not {port!r}")
    assert refused(f"udp:[::1]:{port}").endswith(f": a port is from 1 to 65535, not {port!r}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        ":7",
        "[]:7",
        "[::1:7",
        "::1]:7",
        "udp:",
        "udp::7",
        "-4",
        "//h",
        "//h:7",
        "tcp://h:7/x",
    ],
)
def test_no_target(text: str) -> None:
    """An invalid TARGET is answered with the valid forms."""
    assert "host, host:port, [IPv6 address]:port, udp:host:port or a Twisted client" in refused(
        text
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("::1:7", " is ambiguous: type [::1]:7 or [::1:7]"),
        ("udp:2001:db8::1:7", " is ambiguous: type udp:[2001:db8::1]:7 or udp:[2001:db8::1:7]"),
        ("fe80::1", ": a link-local address needs its interface, as in [fe80::1%eth0]"),
        ("http://h:7", ": use tcp://, udp:// or tls://"),
        ("tcp:/h:7", ": type tcp://h:7, with two slashes"),
        ("udp:h:nosuch", ": 'nosuch' is neither a port nor a service"),
        ("tcp://h:é", ": 'é' is neither a port nor a service"),
    ],
)
def test_what_to_type(text: str, why: str) -> None:
    """The error for a wrong TARGET says what to type."""
    assert refused(text) == f"TARGET {text!r}{why}"


def test_two_ports() -> None:
    """A number after a TARGET that has a port is refused."""
    with pytest.raises(BadTarget, match="TARGET 'h:7' has a port: leave out '8'"):
        parse_target("h:7", "8")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[fe80::1]:7", "a link-local address needs its interface, as in [fe80::1%eth0]"),
        ("udp:[fe80::1]:7", "a link-local address needs its interface, as in [fe80::1%eth0]"),
        ("[::zz]:7", "'::zz' is not an IPv6 address"),
        ("udp:[1:2]:7", "'1:2' is not an IPv6 address"),
        ("[::1%]:7", "'::1%' is not an IPv6 address"),
    ],
)
def test_in_brackets(text: str, why: str) -> None:
    """Brackets need a valid IPv6 address; a link-local one needs its zone (RFC 4007)."""
    assert refused(text) == f"TARGET {text!r}: {why}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nosuch:x", "has an unknown endpoint type: 'nosuch'; a port is a number or a service"),
        ("localhost:nosuch", "has an unknown endpoint type: 'localhost'; a port is"),
        ("tcp:localhost:7:9", "has to be tcp:HOST:PORT"),
        ("tcp:port=7", "has to be tcp:HOST:PORT"),
        ("tcp::7", "has to be tcp:HOST:PORT"),
        ("ssl:localhost", "has to be ssl:HOST:PORT[:caCertsDir=DIRECTORY]"),
        ("TLS:localhost", "has to be tls:HOST:PORT[:trustRoots=DIRECTORY]"),
        ("tls:localhost:7:trustroots=/etc", "has to be tls:HOST:PORT[:trustRoots=DIRECTORY]"),
        ("tls:localhost:7:timeout=soon", "has to be tls:HOST:PORT[:trustRoots=DIRECTORY]"),
        ("unix:/run/x:timeout=soon", "has to be unix:PATH"),
        ("unix:/run/a=b", r"has to be unix:PATH, with a \ before each colon and = of the path"),
        (
            "tls:localhost:7:trustRoots=/no/such",
            "names a file that cannot be read: '/no/such': no such file or directory",
        ),
        (
            "tls:localhost:7:certificate=/:privateKey=/",
            "names a file that cannot be read: '/': is a directory",
        ),
    ],
)
def test_no_endpoint(text: str, why: str) -> None:
    """An invalid endpoint is answered with its usage, without Python's own words."""
    assert refused(text).startswith(f"TARGET {text!r} {why}")


@pytest.mark.parametrize("text", ["tcp:h:70000", "tls:h:-7", "ssl:host=h:port=0"])
def test_bad_port_of_endpoint(text: str) -> None:
    """The port of an endpoint is checked before connecting."""
    port = re.split("[:=]", text)[-1]
    assert refused(text) == f"TARGET {text!r}: a port is from 1 to 65535, not {port!r}"


@pytest.mark.parametrize("option", ["tls:localhost:7:trustRoots", "ssl:localhost:7:caCertsDir"])
@pytest.mark.parametrize("name", ["roots", "a:b"])
def test_key_among_certificates(option: str, name: str, tmp_path: Path) -> None:
    """A private key in a directory of certificates is named with its path."""
    authority = Authority(tmp_path)
    key, _ = authority.issue("server")
    roots = tmp_path / name
    roots.mkdir()
    shutil.copy(authority.file, roots / "a.pem")
    shutil.copy(key, roots / "b.pem")
    text = f"{option}={str(roots).replace(':', chr(92) + ':')}"
    assert refused(text) == (
        f"TARGET {text!r} names a file that TLS cannot use: '{roots}/b.pem' is not a certificate; "
        "each .pem file there has to be one"
    )


def test_certificate_without_key(tmp_path: Path) -> None:
    """A client certificate without its key is refused."""
    authority = Authority(tmp_path)
    assert refused(f"tls:localhost:7:certificate={authority.file}").endswith(
        " names a file that TLS cannot use: a certificate and its private key are needed, "
        "each in PEM"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("localhost:7", "localhost:7"),
        ("udp:[::1]:7", "udp:[::1]:7"),
        ("unix:/run/x", "unix:/run/x"),
        (r"unix:/run/a\=b", r"unix:/run/a\=b"),
        ("unix:path=/run/x:timeout=3", "unix:path=/run/x"),
        ("tls:localhost:7:trustRoots=/etc/ssl/ours", "tls:localhost:7"),
        (r"tls:\:\:1:7:timeout=3:trustRoots=/etc/a\:b", r"tls:\:\:1:7"),
        ("tcp:host=localhost:port=7:timeout=3", "tcp:host=localhost:port=7"),
    ],
)
def test_short_name(text: str, name: str) -> None:
    """The short name of a TARGET has no timeout and no files for TLS."""
    assert parse_target(text).name == name


def test_long_path() -> None:
    """A path that is too long for a UNIX socket is refused; Twisted does not check it."""
    assert refused(f"unix:/{'x' * 107}").endswith(": a path has 107 bytes at most")
    assert parse_target(f"unix:/{'x' * 106}").endpoint(Clock())


def test_endpoint_plugin_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of an endpoint plugin's parser is not quoted."""

    def fail(why: Exception) -> Callable[..., Any]:
        def parse(*_: object) -> Any:
            raise why

        return parse

    for error in (KeyError(), ValueError("a\n  b"), TypeError("_parse() takes 3")):
        monkeypatch.setattr("echod.client.endpoint.clientFromString", fail(error))
        assert refused("odd:x").endswith(" is not accepted by the odd endpoint")


@given(st.text())
def test_any_text(text: str) -> None:
    """Any text is either a TARGET or refused in one printable line."""
    with contextlib.suppress(BadTarget):
        assert parse_target(text).text == text
        return
    assert "\n" not in refused(text)


def test_endpoint_of() -> None:
    """The endpoint has the type of its description."""
    reactor = PreciseReactor()
    assert isinstance(Target("unix:/run/x").endpoint(reactor), UNIXClientEndpoint)
    assert isinstance(Target("tcp:localhost:7").endpoint(reactor), TCP4ClientEndpoint)
    assert IStreamClientEndpoint.providedBy(Target("tls:localhost:7").endpoint(reactor))


def test_twisted_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Twisted could not import TLS, the message names the extra to install."""
    monkeypatch.delattr("twisted.internet.endpoints.optionsForClientTLS")
    assert refused("tls:localhost:7").endswith(
        " needs TLS, which is not installed: install echod with its extra tls"
    )


@pytest.mark.parametrize("missing", ["OpenSSL", "cryptography"])
def test_without_tls(missing: str) -> None:
    """Without pyOpenSSL, tls: is refused with the extra to install; unix: works."""
    program = (
        "import sys; sys.modules[sys.argv[1]] = None\n"
        "from twisted.internet.task import Clock\n"
        "from echod.client.endpoint import BadTarget\n"
        "from echod.client.target import Target\n"
        "print(type(Target('unix:/run/x').endpoint(Clock())).__name__)\n"
        "for text in 'tls:localhost:7', 'ssl:localhost:7':\n"
        "    try: Target(text).endpoint(Clock())\n"
        "    except BadTarget as error: print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, missing],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        cwd=ROOT,
    )
    why = "needs TLS, which is not installed: install echod with its extra tls"
    assert ended.stdout.splitlines() == [
        "UNIXClientEndpoint",
        f"TARGET 'tls:localhost:7' {why}",
        f"TARGET 'ssl:localhost:7' {why}",
    ]


class ThreadCalls:
    """A reactor with callFromThread() alone."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()

    def callFromThread(self, function: Callable[..., object], *arguments: object) -> None:
        self._calls.put(lambda: function(*arguments))

    def wait(self) -> None:
        """Wait for the next call of a thread, and make it."""
        self._calls.get(timeout=TIMEOUT)()


def resolved(text: str, family: int = socket.AF_UNSPEC) -> Any:
    """Return the addresses, or the exception."""
    reactor, results = ThreadCalls(), []
    resolve(reactor, parse_target(text), family).addBoth(results.append)
    assert results == []  # not before a turn of the reactor
    reactor.wait()
    [result] = results
    return getattr(result, "value", result)


def test_resolve() -> None:
    """An IP address resolves to itself, with its family and the port."""
    assert resolved("127.0.0.1:7") == [(socket.AF_INET, ("127.0.0.1", 7))]
    assert resolved("udp:127.0.0.1:7") == [(socket.AF_INET, ("127.0.0.1", 7))]
    assert resolved("[::1]:7") == [(socket.AF_INET6, ("::1", 7, 0, 0))]


LONG = "a" * 70


@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", LONG, f"{LONG}.invalid", "é" * 70, "a..b", "[::1%nosuch]"]
)
def test_no_such_name(host: str) -> None:
    """A name without an address, and an invalid name, are unresolved, with a reason."""
    error = resolved(f"{host}:7")
    assert isinstance(error, socket.gaierror)
    assert error_word(error) == UNRESOLVED
    assert error.strerror
    assert "idna" not in error.strerror
    assert ("%" in host) == (error.strerror == "there is no interface nosuch")


def test_other_ip_version() -> None:
    """If a name has no address of the IP version, the error names the options that ask for it."""
    error = resolved("127.0.0.1:7", socket.AF_INET6)
    assert error_word(error) == UNRESOLVED
    assert error.strerror.endswith(" that was asked for: leave out -4, -6, -I")


@pytest.mark.parametrize("host", ["127.0.0.1", LONG])
def test_resolved_too_late(host: str) -> None:
    """An answer after the lookup was cancelled is ignored."""
    reactor, failures = ThreadCalls(), []
    found: Deferred[Any] = resolve(reactor, parse_target(f"{host}:7"))
    found.addErrback(failures.append)
    found.cancel()
    reactor.wait()
    [failure] = failures
    failure.trap(CancelledError)


def test_resolve_timeout() -> None:
    """After its timeout a lookup fails once, with the timeout."""
    clock, reactor, failures = Clock(), ThreadCalls(), []
    found = resolve(reactor, parse_target("127.0.0.1:7")).addTimeout(3.0, clock)
    found.addErrback(failures.append)
    clock.advance(3.0)
    assert error_word(failures[0].value) == "timed_out"
    reactor.wait()
    assert len(failures) == 1


def test_address_text() -> None:
    """An address is written in the form of TARGET."""
    assert address_text(IPv4Address("TCP", "192.0.2.1", 7)) == "192.0.2.1:7"
    assert address_text(IPv6Address("TCP", "2001:db8::1", 7)) == "[2001:db8::1]:7"
    assert address_text(("192.0.2.1", 7)) == "192.0.2.1:7"
    assert address_text(("2001:db8::1", 7, 0, 0)) == "[2001:db8::1]:7"


def test_zone_of_an_address() -> None:
    """A link-local address has the name of its interface, or its number if that is gone."""
    lo = socket.if_nametoindex("lo")
    assert address_text(("fe80::1", 7, 0, lo)) == "[fe80::1%lo]:7"
    assert address_text(("fe80::1", 7, 0, 1 << 30)) == f"[fe80::1%{1 << 30}]:7"
    assert address_text(IPv6Address("TCP", "fe80::1", 7, 0, lo)) == "[fe80::1%lo]:7"
    assert (
        address_text(IPv6Address("TCP", "fe80::1%lo", 7, 0, lo)) == "[fe80::1%lo]:7"
    )  # Twisted's own


def test_other_addresses(tmp_path: Path) -> None:
    """A UNIX address is its path; other addresses are their ``str``."""
    assert address_text(UNIXAddress(bytes(tmp_path / "x"))) == str(tmp_path / "x")
    assert address_text(UNIXAddress(b"/run/\xff")) == "/run/\N{REPLACEMENT CHARACTER}"
    assert address_text(UNIXAddress(None)) == "UNIXAddress(None)"
    assert "localhost" in address_text(HostnameAddress(b"localhost", 7))
