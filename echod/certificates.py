"""TLS certificates: load them from PEM files, check and reload them, and issue some for tests.

Each problem with a file is reported as one line that names the file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL, crypto

CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Cipher suites of TLS 1.2: those with forward secrecy and AEAD (RFC 9325 4.2), whose algorithms
TLS 1.3 has kept. OpenSSL lists the cipher suites of TLS 1.3 separately."""

BEGIN_CERTIFICATE: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----")
"""The line before a certificate in a PEM file, with any of its labels (RFC 7468 5.1)."""

DATE: Final = "%Y-%m-%d %H:%M:%S UTC"


Extension = TypeVar("Extension", bound=x509.ExtensionType)


class BadCertificates(Exception):
    """A key or certificate cannot be used: one line that names the file and the problem."""


class Identity(NamedTuple):
    """The key and certificates of a TLS port, as read from its files.

    :ivar key: the private key.
    :ivar certificate: its certificate.
    :ivar chain: the certificates of the authorities above it.
    :ivar authorities: those that sign client certificates; empty: none are required.
    """

    key: Any
    certificate: x509.Certificate
    chain: list[x509.Certificate]
    authorities: list[x509.Certificate]


class Certificates:
    """The key and certificates of one TLS port, and the OpenSSL context made from them.

    :param key: the file of the private key (PEM, without a password).
    :param certificate: the file of the certificate (PEM). Any further certificates in it are part
        of the chain.
    :param chain: the file of the rest of the chain, if it is not in ``certificate``.
    :param clients: the file of the authorities that sign client certificates. If it is given, each
        client must present a certificate.
    :raises BadCertificates: if the files cannot be used.

    :ivar file: the file of the certificate.
    :ivar identity: the content of the files.
    """

    def __init__(
        self, key: str, certificate: str, chain: str | None = None, clients: str | None = None
    ) -> None:
        self._files = (key, certificate, chain, clients)
        self.file = certificate
        self.load()

    def load(self) -> None:
        """Load all files again. If one of them cannot be used, the old context stays in use.

        :raises BadCertificates: if the files cannot be used.
        """
        identity = read_identity(*self._files)
        self._context, self.identity = self.make_context(identity), identity

    def make_context(self, identity: Identity) -> SSL.Context:
        """Return an OpenSSL context for ``identity``: that of the files, or one derived from it.

        :raises BadCertificates: if OpenSSL cannot use it.
        """
        with names_file(self.file):  # OpenSSL refuses a key that is too short, for example
            context = make_context(identity)
        with names_file(str(self._files[-1])):
            require_clients(context, identity.authorities)
        return context

    def __call__(self) -> SSL.Context:
        """Return the context of the next handshake."""
        return self._context


def read_identity(key_file: str, file: str, chain: str | None, clients: str | None) -> Identity:
    """Read and check the files; see :class:`Certificates`.

    :raises BadCertificates: if the files cannot be used.
    """
    key = read_key(key_file)
    certificate, *rest = read_certificates(file)
    rest += read_certificates(chain) if chain else []
    for each, source in ((certificate, file), *((each, chain or file) for each in rest)):
        with names_file(source):
            check_dates(each)
    with names_file(file):
        if public_key(key) != public_key(certificate):
            raise ValueError(f"is not the certificate of the key in {key_file}")
    return Identity(key, certificate, rest, read_certificates(clients) if clients else [])


def make_context(identity: Identity) -> SSL.Context:
    """Return an OpenSSL context for ``identity`` that requires no client certificates.

    The context allows TLS 1.2 and later (RFC 8996). It forbids renegotiation, during which a write
    would have to wait for the peer.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    context.set_cipher_list(CIPHERS)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # saves 34 KB for each idle connection
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets resume sessions without memory
    context.use_privatekey(identity.key)
    context.use_certificate(identity.certificate)
    for each in identity.chain:
        context.add_extra_chain_cert(each)
    return context


def require_clients(context: SSL.Context, authorities: list[x509.Certificate]) -> None:
    """Require a client certificate that one of ``authorities`` has signed, if there are any."""
    store: Any = context.get_cert_store()
    for each in authorities:
        store.add_cert(crypto.X509.from_cryptography(each))
        context.add_client_ca(each)  # sent to clients, which choose a certificate by it
    if authorities:
        context.set_session_id(b"echod")  # required by OpenSSL to resume verified sessions
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)


@contextmanager
def names_file(file: str) -> Iterator[None]:
    """Turn any exception into a :class:`BadCertificates` that names ``file``."""
    try:
        yield
    except Exception as error:
        raise BadCertificates(f"{file}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return the message of ``error`` in a few words."""
    if isinstance(error, SSL.Error | crypto.Error):
        return ", ".join(reason for *_, reason in error.args[0]) or "OpenSSL refuses it"
    if isinstance(error, OSError):
        return str(error.strerror).lower()
    return str(error)


def read_key(file: str) -> Any:
    """Return the private key in ``file``."""
    with names_file(file):
        data = read(file)
        try:
            return load_pem_private_key(data, None)
        except TypeError:
            raise ValueError("the private key has a password: remove the password") from None
        except Exception:  # the parser raises many types
            raise ValueError("there is no private key (PEM) in it") from None


def read_certificates(file: str) -> list[x509.Certificate]:
    """Return the certificates in ``file``, at least one."""
    with names_file(file):
        data = read(file)
        try:
            found = x509.load_pem_x509_certificates(data)
        except ValueError:
            raise ValueError("there is no certificate (PEM) in it") from None
        if len(found) != len(BEGIN_CERTIFICATE.findall(data)):  # the file is still being written
            raise ValueError("not all of its certificates (PEM) can be read")
        return found


def read(file: str) -> bytes:
    """Return the content of ``file``."""
    with open(file, "rb", opener=open_nonblocking) as opened:
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            raise ValueError("is not a regular file")
        return opened.read()


def open_nonblocking(file: str, flags: int) -> int:
    """Open ``file`` without blocking: to open a FIFO waits for a writer otherwise (fifo(7))."""
    return os.open(file, flags | os.O_NONBLOCK)


def check_dates(certificate: x509.Certificate) -> None:
    """Raise ValueError if ``certificate`` is not valid now (RFC 5280 4.1.2.5)."""
    now = datetime.now(timezone.utc)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    name = certificate.subject.rfc4514_string()
    if now < first:
        raise ValueError(f"the certificate of {name!r} is not valid until {first:{DATE}}")
    if now > last:
        raise ValueError(f"the certificate of {name!r} expired on {last:{DATE}}")


def public_key(key: Any) -> bytes:
    """Return the public key of a private key or of a certificate, encoded."""
    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def issue(
    subject: x509.Name,
    names: x509.SubjectAlternativeName | None,
    valid: tuple[datetime, datetime],
    issuer: Identity | None = None,
) -> tuple[Any, x509.Certificate]:
    """Return a new private key (P-256) and its certificate, for a test of TLS clients.

    It has all that OpenSSL's strict verification requires (VERIFY_X509_STRICT, the default of
    Python 3.13), except from its issuer.

    :param names: the host names and addresses of the server, if it has any.
    :param valid: the first and the last time at which it is valid.
    :param issuer: signs it. ``None``: it signs itself, and can sign others.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    own_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    by, signer, signer_id = subject, key, own_id
    if issuer is not None:
        by, signer = issuer.certificate.subject, issuer.key
        signer_id = extension(issuer.certificate, x509.SubjectKeyIdentifier) or (
            x509.SubjectKeyIdentifier.from_public_key(signer.public_key())
        )
    signs = issuer is None
    usage = x509.KeyUsage(True, False, False, False, False, signs, signs, False, False)
    by_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer_id)
    number = x509.random_serial_number()
    builder = (
        x509.CertificateBuilder(by, subject, key.public_key(), number, *valid)
        .add_extension(x509.BasicConstraints(signs, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(by_id, critical=False)
        .add_extension(own_id, critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    edwards = isinstance(signer, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return key, builder.sign(signer, None if edwards else hashes.SHA256())


def can_issue(certificate: x509.Certificate) -> bool:
    """Return whether ``certificate`` can issue others (RFC 5280 4.2.1.3 and 4.2.1.9)."""
    constraints = extension(certificate, x509.BasicConstraints)
    usage = extension(certificate, x509.KeyUsage)
    return bool(constraints and constraints.ca and (usage is None or usage.key_cert_sign))


def write_certificate(directory: str, host: str, address: str) -> tuple[str, str]:
    """Write a new private key and its certificate, which signs itself, for a test on this machine.

    It is valid from yesterday until tomorrow.

    :param directory: where to write ``key.pem`` and ``certificate.pem``.
    :param host: the server's host name.
    :param address: its IP address.
    :return: the two files.
    """
    names = x509.DNSName(host), x509.IPAddress(ip_address(address))
    now, day = datetime.now(timezone.utc), timedelta(days=1)
    subject = x509.Name.from_rfc4514_string(f"CN={host}")
    key, signed = issue(subject, x509.SubjectAlternativeName(names), (now - day, now + day))
    files = f"{directory}/key.pem", f"{directory}/certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for file, content in zip(files, (private, signed.public_bytes(Encoding.PEM)), strict=True):
        Path(file).write_bytes(content)
    return files


def extension(certificate: x509.Certificate, kind: type[Extension]) -> Extension | None:
    """Return the extension of ``certificate`` that is a ``kind``, if it has one."""
    values = (each.value for each in certificate.extensions)
    return next((each for each in values if isinstance(each, kind)), None)
