"""The certificates of TLS faults, as OpenSSL's clients see them."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from OpenSSL import SSL

from echod.certificates import BadCertificates, Certificates, issue
from echod.faults import TLS, Plan, when
from echod.faulty import FaultyEchoFactory
from echod.faultytls import OF_CERTIFICATES, FaultyTLSFactory
from echod.tls import server_end
from tests.authority import DAY, Authority

PORT_KEYS = {
    "ecdsa": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}

# VERIFY_X509_STRICT and VERIFY_X509_PARTIAL_CHAIN: the defaults of Python 3.13.
STRICT = ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of X509_VERIFY_PARAM_set_flags(3)

EXPECTED = {
    "wrong-name": "Hostname mismatch, certificate is not valid for 'localhost'.",
    "expired": "certificate has expired",
    "self-signed": "self-signed certificate",
}

# The same of openssl-verify(1), as pyOpenSSL's clients get them, which do not check the host name.
CODES = {"wrong-name": [], "expired": [10], "self-signed": [18]}


def contexts(key_file: str, file: str) -> FaultyTLSFactory:
    return FaultyTLSFactory(FaultyEchoFactory(Plan(), serves=TLS), Certificates(key_file, file))


def client(trusted: str, flags: int = 0) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=trusted)
    context.verify_flags = ssl.VerifyFlags(flags)
    return context


def handshake(server: SSL.Context, client: ssl.SSLContext) -> str:
    """Return the version of TLS, or the error that the client gets."""
    return handshake_and_certificate(server, client)[0]


def certificate(server: SSL.Context, client: ssl.SSLContext) -> bytes:
    """Return the certificate that the client gets."""
    return handshake_and_certificate(server, client)[1]


def handshake_and_certificate(server: SSL.Context, client: ssl.SSLContext) -> tuple[str, bytes]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client.wrap_bio(incoming, outgoing, server_hostname="localhost")
    end = server_end(server)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            end.bio_write(outgoing.read())
        except ssl.SSLCertVerificationError as error:
            return error.verify_message, b""
        except ssl.SSLError as error:
            return str(error.reason), b""
        else:
            return str(tls.version()), tls.getpeercert(binary_form=True) or b""
        pass_on(end, incoming.write)


def pass_on(end: SSL.Connection, write: Callable[[bytes], object]) -> None:
    """Continue the handshake of ``end``, and pass on what it sends."""
    with suppress(SSL.Error):  # it waits for its peer, or has sent an alert
        end.do_handshake()
    with suppress(SSL.WantReadError):
        write(end.bio_read(1 << 16))


def codes(server: SSL.Context, trusted: str) -> list[int]:
    """Return the verification errors of a client of pyOpenSSL."""
    errors: set[int] = set()

    def verify(_: object, __: object, error: int, ___: int, good: int) -> bool:
        errors.update([] if good else [error])
        return True

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.load_verify_locations(trusted)
    context.set_verify(SSL.VERIFY_PEER, verify)
    tls = SSL.Connection(context, None)
    tls.set_connect_state()
    end = server_end(server)
    pass_on(tls, end.bio_write)
    pass_on(end, tls.bio_write)
    pass_on(tls, end.bio_write)
    return sorted(errors)


@pytest.fixture(params=PORT_KEYS)
def authority(request: pytest.FixtureRequest, tmp_path: Path) -> Authority:
    return Authority(tmp_path, key=PORT_KEYS[request.param]())


@pytest.mark.parametrize("flags", [0, STRICT])
@pytest.mark.parametrize("fault", OF_CERTIFICATES)
def test_exactly_one_error(authority: Authority, fault: str, flags: int) -> None:
    """A client that trusts the port's certificate finds just this one error."""
    port = contexts(authority.key_file, authority.file)
    assert handshake(port.context_of(fault), client(authority.file, flags)) == EXPECTED[fault]
    assert codes(port.context_of(fault), authority.file) == CODES[fault]


def test_nothing_else_is_wrong(authority: Authority) -> None:
    """A client that does not check this one thing completes its handshake."""
    port = contexts(authority.key_file, authority.file)
    any_name = client(authority.file, STRICT)
    any_name.check_hostname = False
    assert handshake(port.context_of("wrong-name"), any_name) == "TLSv1.3"
    any_time = client(authority.file, STRICT | NO_CHECK_TIME)
    assert handshake(port.context_of("expired"), any_time) == "TLSv1.3"
    curious = client(authority.file)
    curious.check_hostname = False
    curious.verify_mode = ssl.CERT_NONE
    trusting = client(authority.file, STRICT)
    trusting.load_verify_locations(cadata=certificate(port.context_of("self-signed"), curious))
    assert handshake(port.context_of("self-signed"), trusting) == "TLSv1.3"


@pytest.mark.parametrize("fault", OF_CERTIFICATES)
def test_certificate_that_cannot_issue(tmp_path: Path, fault: str) -> None:
    """A port whose certificate cannot issue others has no faults that need one."""
    certificates = Certificates(*Authority(tmp_path).issue("server"))
    factory = FaultyEchoFactory(Plan((when.certificate(fault),)), serves=TLS)
    if fault == "self-signed":
        FaultyTLSFactory(factory, certificates)
    else:
        with pytest.raises(ValueError, match=f"{fault} needs a certificate that can"):
            FaultyTLSFactory(factory, certificates)


def test_old_version(tmp_path: Path) -> None:
    """TLS 1.1 alone is accepted, which only clients at OpenSSL's security level 0 offer."""
    authority = Authority(tmp_path)
    server = contexts(*authority.issue("server")).context_of("old-version")
    assert handshake(server, client(authority.file)) == "TLSV1_ALERT_PROTOCOL_VERSION"
    old = client(authority.file)
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1_1
    assert handshake(server, old) == "TLSv1.1"


def test_reload(tmp_path: Path) -> None:
    """After a reload, the faulty certificates are derived from the new certificate."""
    first, second = Authority(tmp_path), Authority(tmp_path, "second")
    certificates = Certificates(first.key_file, first.file)
    port = FaultyTLSFactory(FaultyEchoFactory(Plan(), serves=TLS), certificates)
    before = port.context_of("expired")
    assert port.context_of("expired") is before
    Path(first.key_file).write_bytes(Path(second.key_file).read_bytes())
    Path(first.file).write_bytes(Path(second.file).read_bytes())
    certificates.load()
    assert handshake(port.context_of("expired"), client(second.file)) == EXPECTED["expired"]


def test_no_names(tmp_path: Path) -> None:
    """The certificates of a port without names have none, and one without key identifier issues."""
    authority = Authority(tmp_path)
    now = datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    key, own = issue(name, None, (now - DAY, now + DAY))
    bare = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - DAY, now + DAY)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    for certificate in (own, bare):
        Path(authority.file).write_bytes(certificate.public_bytes(Encoding.PEM))
        Path(authority.key_file).write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        port = contexts(authority.key_file, authority.file)
        assert (
            handshake(port.context_of("wrong-name"), client(authority.file))
            == (EXPECTED["wrong-name"])
        )
        trusting = client(authority.file)
        trusting.check_hostname = False
        assert handshake(port.context_of("expired"), trusting) == EXPECTED["expired"]


def test_unreadable_extension(tmp_path: Path) -> None:
    """A certificate from which none can be derived is one line that names its file."""
    authority = Authority(tmp_path)
    now = datetime.now(timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
    names = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"damaged")
    damaged = (
        x509.CertificateBuilder(name, name, authority._key.public_key(), 1, now - DAY, now + DAY)
        .add_extension(names, critical=False)
        .sign(authority._key, hashes.SHA256())
    )
    Path(authority.file).write_bytes(damaged.public_bytes(Encoding.PEM))
    with pytest.raises(BadCertificates) as caught:
        contexts(authority.key_file, authority.file)
    assert str(caught.value).startswith(f"{authority.file}: ")
