"""Keys and certificates, read from files, and one clear line for what is wrong with them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL, crypto

CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2 those that TLS 1.3 still has the parts of (RFC 9325 4.2); TLS 1.3 has its own list."""

BEGINS: Final = re.compile(rb"-----BEGIN [A-Z0-9 ]*CERTIFICATE-----")
"""How a certificate begins (RFC 7468 5.1), by any of its names."""


class BadCertificates(Exception):
    """One line, which names the file and says what is wrong with it."""


class Certificates:
    """The files of one port, and what was last loaded from them.

    :param key: the private key's file (PEM, without a password).
    :param certificate: its certificate's file (PEM); what else is in there belongs to the chain.
    :param chain: the file with the rest of the chain, if it has one of its own.
    :param clients: the file with the authorities that clients' certificates are from; then
        each client has to show one.
    :raises BadCertificates: for what cannot be served with.
    """

    def __init__(
        self, key: str, certificate: str, chain: str | None = None, clients: str | None = None
    ) -> None:
        self._files = (key, certificate, chain, clients)
        self.load()

    def load(self) -> None:
        """Load all of the files; what was loaded before stays, where that is not possible.

        :raises BadCertificates: for what cannot be served with.
        """
        key, certificate, chain, clients = self._files
        self._context = context(key, certificate, chain, clients)

    def __call__(self) -> SSL.Context:
        """Return what the next handshake is done with."""
        return self._context


def context(key_file: str, file: str, chain: str | None, clients: str | None) -> SSL.Context:
    """Return OpenSSL's form of what is in the files: see :class:`Certificates`.

    TLS 1.2 and later only (RFC 8996). No renegotiation, in which a write would have to wait
    for the peer.

    :raises BadCertificates: for what cannot be served with.
    """
    key = read_key(key_file)
    certificate, *rest = read_certificates(file)
    rest += read_certificates(chain) if chain else []
    for each, where in ((certificate, file), *((each, chain or file) for each in rest)):
        with naming(where):
            check_dates(each, where)
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    made.set_cipher_list(CIPHERS)
    made.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 34 KB less for each idle connection
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets do as well, and cost no memory
    with naming(file):  # as for a key that is too short to be safe
        if public(key) != public(certificate):
            raise BadCertificates(f"{file}: is not the certificate of the key in {key_file}")
        made.use_privatekey(key)
        made.use_certificate(certificate)
        for each in rest:
            made.add_extra_chain_cert(each)
    if clients:
        store: Any = made.get_cert_store()
        with naming(clients):
            for each in read_certificates(clients):
                store.add_cert(crypto.X509.from_cryptography(each))
                made.add_client_ca(each)  # for the clients to choose by
        made.set_session_id(b"echod")  # without one, OpenSSL resumes no verified session
        made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return made


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Name ``file`` with whatever its parsers, or OpenSSL, do not take of it."""
    try:
        yield
    except BadCertificates:
        raise
    except (SSL.Error, crypto.Error) as error:
        raise BadCertificates(f"{file}: {said(error)}") from error
    except Exception as error:
        raise BadCertificates(f"{file}: {error}") from error


def read(file: str) -> bytes:
    """Return what is in ``file``."""
    try:
        with open(file, "rb", opener=at_once) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BadCertificates(f"{file}: is no regular file")
            return opened.read()
    except OSError as error:
        raise BadCertificates(f"{file}: {str(error.strerror).lower()}") from error
    except ValueError as error:
        raise BadCertificates(f"{file}: {error}") from error


def at_once(file: str, flags: int) -> int:
    """Open ``file``, also a FIFO that nobody writes into: everybody would wait for that."""
    return os.open(file, flags | os.O_NONBLOCK)


def read_key(file: str) -> Any:
    """Return the private key in ``file``."""
    data = read(file)
    try:
        return load_pem_private_key(data, None)
    except TypeError as error:
        raise BadCertificates(f"{file}: its key has a password, which cannot be given") from error
    except Exception as error:  # whatever its parser makes of it
        raise BadCertificates(f"{file}: there is no private key (PEM) in it") from error


def read_certificates(file: str) -> list[x509.Certificate]:
    """Return the certificates in ``file``, one at least."""
    data = read(file)
    try:
        found = x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise BadCertificates(f"{file}: there is no certificate (PEM) in it") from error
    if len(found) != len(BEGINS.findall(data)):  # as of a file that is being written
        raise BadCertificates(f"{file}: not all of its certificates (PEM) can be read")
    return found


def check_dates(certificate: x509.Certificate, file: str) -> None:
    """Raise where ``certificate`` is not valid now (RFC 5280 4.1.2.5)."""
    now = datetime.now(timezone.utc)
    for over, date, says in (
        (now > certificate.not_valid_after_utc, certificate.not_valid_after_utc, "expired"),
        (now < certificate.not_valid_before_utc, certificate.not_valid_before_utc, "valid only"),
    ):
        if over:
            when = f"{'on' if says == 'expired' else 'from'} {date:%Y-%m-%d %H:%M:%S} UTC"
            name = certificate.subject.rfc4514_string()
            raise BadCertificates(f"{file}: its certificate of {name!r} is {says} {when}")


def public(key: Any) -> bytes:
    """Return the public key of a private key, or in a certificate."""
    form = PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_key().public_bytes(Encoding.DER, form))


def said(error: SSL.Error | crypto.Error) -> str:
    """Return what OpenSSL says, in a few words."""
    return ", ".join(reason for *_, reason in error.args[0]) or "OpenSSL does not take it"
