"""Keys and certificates, read from files, and one clear line for what is wrong with them."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL

from echod.daemon.listening import explain

CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2 those that TLS 1.3 still has the parts of (RFC 9325 4.2); TLS 1.3 has its own list."""


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
        check_dates(each, where)
    if public(key) != public(certificate):
        raise BadCertificates(f"{file}: is not the certificate of the key in {key_file}")
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.set_min_proto_version(SSL.TLS1_2_VERSION)
    made.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    made.set_cipher_list(CIPHERS)
    made.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 34 KB less for each idle connection
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)  # tickets do as well, and cost no memory
    try:
        made.use_privatekey(key)
        made.use_certificate(certificate)
        for each in rest:
            made.add_extra_chain_cert(each)
    except SSL.Error as error:  # as for a key that is too short to be safe
        raise BadCertificates(f"{file}: {said(error)}") from error
    if clients:
        read_certificates(clients)  # which tells what is wrong with the file
        made.load_verify_locations(clients)
        made.load_client_ca(os.fsencode(clients))  # for the clients to choose by
        made.set_session_id(b"echod")  # without one, OpenSSL resumes no verified session
        made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    return made


def read(file: str) -> bytes:
    """Return what is in ``file``."""
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise BadCertificates(f"{file}: {explain(error)}") from error


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
    try:
        return x509.load_pem_x509_certificates(read(file))
    except ValueError as error:
        raise BadCertificates(f"{file}: there is no certificate (PEM) in it") from error


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


def said(error: SSL.Error) -> str:
    """Return what OpenSSL says, in a few words."""
    return ", ".join(reason for *_, reason in error.args[0]) or "OpenSSL does not take it"
