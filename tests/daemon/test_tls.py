"""--listen ssl:, and errors about keys and certificates."""

from __future__ import annotations

import base64
import errno
import os
import socket
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.error import CannotListenError
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import LogEvent, formatEvent

from echod import certificates as module
from echod.addresses import on_one_line
from echod.certificates import BadCertificates, Certificates
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import tls as secure
from echod.daemon.listeners.kinds import echo_listener
from echod.daemon.listeners.systemd import PassedSocket
from echod.factory import EchoFactory
from echod.faultplan import NON_CA_TLS, TLS, Plan
from echod.faulty import FaultyEchoFactory
from echod.faultytls import FaultyTLSFactory
from echod.tls import TLSFactory
from echod.udp import EchoDatagrams
from tests.authority import DAY, Authority
from tests.coroutines import now
from tests.daemon.passed_sockets import passed_socket
from tests.reactors import reactor_of_kind

NOW = datetime.now(timezone.utc)
DATES = NOW - DAY, NOW + DAY


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[LogEvent]:
    events: list[LogEvent] = []
    monkeypatch.setattr(secure.log, "observer", events.append)
    return events


def ssl_port(authority: Authority, more: str = "", port: str = "7") -> str:
    key, certificate = authority.issue("server")
    return f"ssl:{port}:privateKey={key}:certKey={certificate}{more}"


def tls_listener(reactor: Any, description: str, passed: list[PassedSocket]) -> Any:
    return echo_listener(reactor, EchoDatagrams(Clock()), description, passed)


def refused(description: str) -> str:
    with pytest.raises(CannotServe) as caught:
        tls_listener(MemoryReactorClock(), description, [])
    line = str(caught.value)
    option = on_one_line(f"--listen {description!r}: ")
    assert line.startswith(f"twistd echod: {option}")
    assert line.isprintable()
    return line.partition(option)[2]


def bad(*files: str | None) -> str:
    with pytest.raises(BadCertificates) as caught:
        Certificates(*files)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "interfaces"),
    [
        ("", ["127.0.0.1", "::1"]),
        (":interface=192.0.2.1", ["192.0.2.1"]),
        (r":interface=2001\:db8\:\:1", ["2001:db8::1"]),
    ],
)
def test_addresses(authority: Authority, more: str, interfaces: list[str]) -> None:
    """It listens on the given address, or on both loopback addresses, with echod's backlog."""
    reactor = MemoryReactorClock()
    factory = EchoFactory()
    for port in ("7", "port=7"):
        reactor.tcpServers.clear()
        ports = now(tls_listener(reactor, ssl_port(authority, more, port), []).listen(factory))
        assert len(ports) == len(interfaces)
        for (number, over, backlog, interface), wanted in zip(
            reactor.tcpServers, interfaces, strict=True
        ):
            assert (number, backlog, interface) == (7, 1024, wanted)
            assert isinstance(over, TLSFactory)
            assert over.wrappedFactory is factory


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("ssl", "it has no port"),
        (
            "ssl:http:privateKey=a:certKey=b",
            "port takes a whole number from 0 to 65535, not 'http'",
        ),
        ("ssl:65536:privateKey=a:certKey=b", "from 0 to 65535, not '65536'"),
        ("ssl:²:privateKey=a:certKey=b", "from 0 to 65535, not '\\xb2'"),
        ("ssl:7", "it has no privateKey="),
        ("ssl:7:privateKey=a", "it has no certKey="),
        ("ssl:7:privateKey=a:certKey=b:dhParameters=c", "there is no parameter 'dhParameters=c'"),
        ("ssl:7:key.pem:cert.pem", "there is no parameter 'key.pem'"),
        ("ssl:7:privateKey=a:certKey=", "certKey= is empty"),
        ("ssl:7:privateKey=a:certKey=b:privateKey=c", "privateKey= is given twice"),
        ("ssl:7:privateKey=a:certKey=b:interface=eth0", "interface= takes an IPv4 or"),
        ("ssl:systemd:privateKey=a:certKey=b", "it has no name="),
        ("ssl:SYSTEMD:name=tls:certKey=b", "it has no privateKey="),
        (
            "ssl:systemd:name=tls:privateKey=a:certKey=b:interface=::1",
            "there is no parameter 'interface=",
        ),
        ("ssl:systemd:domain=INET:index=0", "there is no parameter 'domain=INET'"),
    ],
)
def test_wrong_arguments(description: str, says: str) -> None:
    """A mistake is one line that says what is wrong, and what the option takes."""
    line = refused(description)
    assert says in line
    assert "; it takes ssl:PORT:privateKey=FILE:certKey=FILE, and " in line


def test_bad_files(authority: Authority) -> None:
    """The error about a file names the option and the file."""
    key, certificate = authority.issue("server")
    assert refused(f"ssl:7:privateKey=/none:certKey={certificate}").startswith(
        "/none: no such file or directory"
    )
    assert "server.key: there is no certificate" in refused(f"ssl:7:privateKey={key}:certKey={key}")


def test_passed(authority: Authority) -> None:
    """All passed sockets of the name are served over TLS; others stay in the list."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        passed = [passed_socket(one, "tls"), PassedSocket(999, "other"), passed_socket(two, "tls")]
        description = ssl_port(authority, ":name=tls", "systemd")
        listener: Any = tls_listener(reactor_of_kind("epoll"), description, passed)
        assert (listener.held_by_systemd, bool(listener.tls)) == (True, True)
        assert passed == [PassedSocket(999, "other")]
        ports: Any = now(listener.listen(EchoFactory()))
        assert [(port.getHost().port, type(port.factory)) for port in ports] == [
            (sock.getsockname()[1], TLSFactory) for sock in (one, two)
        ]
        for port in ports:
            port.stopListening()
        for sock in listener.sockets:
            sock.close()


def test_not_passed() -> None:
    """If no socket has the name, the error says so, without the syntax."""
    line = refused("ssl:systemd:name=tls:privateKey=a:certKey=b")
    assert line.startswith("systemd passed no socket with the name 'tls' (")
    assert line.endswith("left: none")


def test_passed_datagrams(authority: Authority) -> None:
    """A datagram socket is refused, since TLS needs a stream."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        description = ssl_port(authority, ":name=tls", "systemd")
        with pytest.raises(CannotServe, match=r"\(tls\) is a datagram socket: give it a socket u"):
            tls_listener(MemoryReactorClock(), description, [passed_socket(sock, "tls")])


def test_address_in_use(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error about a port in use has the whole option."""
    description = ssl_port(authority, ":interface=192.0.2.1")
    reactor = MemoryReactorClock()

    def in_use(*_: object, **__: object) -> None:
        error = OSError(errno.EADDRINUSE, "Address already in use")
        raise CannotListenError("192.0.2.1", 7, error)

    monkeypatch.setattr(reactor, "listenTCP", in_use)
    with pytest.raises(CannotServe) as caught:
        now(tls_listener(reactor, description, []).listen(EchoFactory()))
    line = str(caught.value)
    assert f"--listen {description!r}: cannot listen on tcp 192.0.2.1:7: address already" in line


def test_reload(authority: Authority, log: list[LogEvent]) -> None:
    """A reload is logged; a failed reload is critical, and the old certificates stay."""
    listener = tls_listener(MemoryReactorClock(), ssl_port(authority), [])
    first = listener.tls.certificates()
    listener.tls.reload()
    second = listener.tls.certificates()
    assert second is not first
    Path(authority.issue("server")[0]).unlink()
    listener.tls.reload()
    assert listener.tls.certificates() is second
    assert [event["event"] for event in log] == ["reloaded", "unloaded"]
    assert "server.key: no such file" in formatEvent(log[1])


def test_another_directory(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[LogEvent]
) -> None:
    """Relative paths are found again after the process has changed its directory."""
    authority.issue("server")
    monkeypatch.chdir(tmp_path)
    files = "privateKey=server.key:certKey=server.pem"
    listener = tls_listener(MemoryReactorClock(), f"ssl:7:{files}", [])
    monkeypatch.chdir("/")
    listener.tls.reload()
    assert [event["event"] for event in log] == ["reloaded"]


def test_expired(authority: Authority) -> None:
    """A certificate that has expired, or is not yet valid, is named with the date."""
    key, late = authority.issue("late", valid=timedelta(seconds=-1))
    assert "late.pem: the certificate of 'CN=late' expired on 2" in bad(key, late)
    key, early = authority.issue("early", valid=timedelta(days=-2))
    assert "early.pem: the certificate of 'CN=early' is not valid until 2" in bad(key, early)


def test_expired_in_the_chain(authority: Authority) -> None:
    """An expired certificate of the chain is named, in its own file or after the certificate."""
    key, certificate = authority.issue("server")
    _, late = authority.issue("late", valid=timedelta(seconds=-1))
    assert bad(key, certificate, late).startswith(f"{late}: the certificate of 'CN=late'")
    with Path(certificate).open("a") as file:
        file.write(Path(late).read_text())
    assert bad(key, certificate).startswith(f"{certificate}: the certificate of 'CN=late'")


def test_chain(authority: Authority) -> None:
    """The chain is read from its own file, or after the certificate."""
    key, certificate = authority.issue("server")
    Certificates(key, certificate, authority.file)
    with Path(certificate).open("a") as file:
        file.write(Path(authority.file).read_text())
    Certificates(key, certificate)


def test_clients(authority: Authority) -> None:
    """With clientCA each client must send a certificate; without, none is requested."""
    files = authority.issue("server")
    assert Certificates(*files, clients=authority.file)().get_verify_mode() == (
        module.SSL.VERIFY_PEER | module.SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    )
    assert Certificates(*files)().get_verify_mode() == module.SSL.VERIFY_NONE


def test_wrong_pair(authority: Authority) -> None:
    """A key and a certificate that do not match are both named."""
    key, _ = authority.issue("server")
    _, other = authority.issue("other")
    assert bad(key, other) == f"{other}: is not the certificate of the key in {key}"


@pytest.mark.parametrize("wrong", ["key", "certificate", "chain", "clients"])
def test_not_pem(authority: Authority, tmp_path: Path, wrong: str) -> None:
    """Each file without its PEM data is named."""
    key, certificate = authority.issue("server")
    empty = tmp_path / "empty"
    for text in ("", "nothing", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"):
        empty.write_text(text)
        files = {"key": key, "certificate": certificate, wrong: str(empty)}
        assert bad(*(files.get(name) for name in ("key", "certificate", "chain", "clients"))) == (
            f"{empty}: there is no {'private key' if wrong == 'key' else 'certificate'} (PEM) in it"
        )


def test_password(authority: Authority) -> None:
    """A key with a password is refused, without a prompt."""
    key, certificate = authority.issue("server", password=b"secret")
    assert bad(key, certificate) == f"{key}: the private key has a password: remove the password"


def test_unreadable(authority: Authority, tmp_path: Path) -> None:
    """A file that cannot be read is named, with the reason."""
    key, _ = authority.issue("server")
    assert bad(key, str(tmp_path)) == f"{tmp_path}: is a directory"
    assert "null byte" in bad(key, "\0")


def test_other_advice(authority: Authority, tmp_path: Path) -> None:
    """The error about a missing file gives no advice about its directory."""
    key, certificate = authority.issue("server")
    missing = str(tmp_path / "missing")
    for files in ((missing, certificate), (key, missing)):
        assert bad(*files) == f"{missing}: no such file or directory"


@pytest.mark.parametrize("wrong", ["certificate", "chain", "clients"])
def test_half_written(
    authority: Authority, tmp_path: Path, log: list[LogEvent], wrong: str
) -> None:
    """A file that is not completely written is refused."""
    key, certificate = authority.issue("server")
    names = {"certificate": certificate}
    for name in ("chain", "clients"):
        names[name] = str(tmp_path / name)
        Path(names[name]).write_bytes(Path(authority.file).read_bytes())
    listener = tls_listener(
        MemoryReactorClock(),
        f"ssl:7:privateKey={key}:certKey={certificate}"
        f":extraCertChain={names['chain']}:clientCA={names['clients']}",
        [],
    )
    with Path(names[wrong]).open("ab") as file:
        file.write(Path(authority.file).read_bytes()[:200])
    listener.tls.reload()
    [event] = log
    assert event["event"] == "unloaded"
    assert event["why"] == f"{names[wrong]}: not all of its certificates (PEM) can be read"


def test_fifo(authority: Authority, tmp_path: Path) -> None:
    """A FIFO is refused at once, without waiting for a writer."""
    key, certificate = authority.issue("server")
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    for files in ((fifo, certificate), (key, fifo), (key, certificate, None, fifo)):
        assert bad(*files) == f"{fifo}: is not a regular file"


def test_unknown_key(authority: Authority) -> None:
    """A certificate with a key of an unknown kind is named, with the parser's message."""
    key, certificate = authority.issue("server")
    der = x509.load_pem_x509_certificate(Path(certificate).read_bytes()).public_bytes(Encoding.DER)
    ec = bytes.fromhex("06072a8648ce3d0201")  # id-ecPublicKey (RFC 5480 2.1.1)
    strange = base64.encodebytes(der.replace(ec, ec[:-1] + b"\x77")).decode()
    Path(certificate).write_text(
        f"-----BEGIN CERTIFICATE-----\n{strange}-----END CERTIFICATE-----\n"
    )
    assert bad(key, certificate).startswith(f"{certificate}: ")


def test_clients_of_any_name(authority: Authority, tmp_path: Path) -> None:
    """A file name that is not UTF-8, and other PEM data in the file, are accepted."""
    files = authority.issue("server")
    strange = os.fsdecode(os.fsencode(tmp_path / "authority-") + b"\xff")
    Path(strange).write_text(
        f"{Path(authority.file).read_text()}"
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"
    )
    Certificates(*files, clients=strange)


def test_short_key(authority: Authority) -> None:
    """The error about a key that is too short has OpenSSL's message."""
    files = authority.issue("short", key=rsa.generate_private_key(65537, 1024))
    assert bad(*files) == f"{files[1]}: ee key too small"


def test_error_without_message() -> None:
    """If OpenSSL has no message, the error is still one line."""
    error: Any = module.SSL.Error([])
    assert module.reason_of(error) == "OpenSSL refuses it"


def damaged(authority: Authority) -> tuple[str, str]:
    """Write a certificate with an extension that cannot be read."""
    builder = x509.CertificateBuilder(
        authority._name, authority._name, authority._key.public_key(), 1, *DATES
    ).add_extension(x509.UnrecognizedExtension(x509.KeyUsage.oid, b"damaged"), critical=False)
    certificate = builder.sign(authority._key, hashes.SHA256())
    Path(authority.file).write_bytes(certificate.public_bytes(Encoding.PEM))
    return authority.key_file, authority.file


def test_faulty(authority: Authority) -> None:
    """The faults of a port depend on whether its certificate can issue others."""
    for files, serves in [
        ((authority.key_file, authority.file), TLS),
        (authority.issue("server"), NON_CA_TLS),
    ]:
        key, certificate = files
        port = f"ssl:7:privateKey={key}:certKey={certificate}"
        listener = tls_listener(MemoryReactorClock(), port, [])
        assert listener.serves == serves
        assert type(listener.tls.wrap(EchoFactory())) is TLSFactory
        faulty = FaultyEchoFactory(Plan(), serves=serves)
        assert type(listener.tls.wrap(faulty)) is FaultyTLSFactory


def test_faulty_with_a_damaged_certificate(authority: Authority) -> None:
    """A certificate that OpenSSL accepts, and from which no faulty one can be made, is one line."""
    key, certificate = damaged(authority)
    port = f"ssl:7:privateKey={key}:certKey={certificate}"
    listener = tls_listener(MemoryReactorClock(), port, [])
    with pytest.raises(CannotServe) as caught:
        _ = listener.serves
    assert str(caught.value).startswith(f"twistd echod: {on_one_line(f'--listen {port!r}: ')}")
