"""A certificate authority for tests, with a new key each time."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

DAY = timedelta(days=1)
SIGNS = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=False,
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Sign certificates, and write them to ``directory`` (PEM).

    :param key: its private key; by default a new one.
    :ivar file: the file of the authority's own certificate.
    :ivar key_file: the file of its private key. With both, it can be a server.
    """

    def __init__(self, directory: Path, name: str = "authority", key: Any = None) -> None:
        self._directory = directory
        self._key = key or ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.file = self._write(f"{name}.pem", self._sign(self._key, self._name, DAY, True))
        private = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.key_file = self._write(f"{name}.key", private)

    def issue(
        self, name: str, valid: timedelta = DAY, key: Any = None, password: bytes | None = None
    ) -> tuple[str, str]:
        """Write a key and its certificate, and return their files.

        :param valid: the time from now until it expires; it is valid since a day ago. If this is
            -1 day or less, it is valid from tomorrow on.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        secret = BestAvailableEncryption(password) if password else NoEncryption()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret)
        return (
            self._write(f"{name}.key", private),
            self._write(f"{name}.pem", self._sign(key, subject, valid, False)),
        )

    def _sign(self, key: Any, subject: x509.Name, valid: timedelta, authority: bool) -> bytes:
        now = datetime.now(timezone.utc)
        names = [
            x509.DNSName("localhost"),
            *(x509.IPAddress(ipaddress.ip_address(each)) for each in ("127.0.0.1", "::1")),
        ]
        # Python 3.13 requires both identifiers, and SIGNS (VERIFY_X509_STRICT; RFC 5280 4.2.1).
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY if valid > -DAY else now + DAY)
            .not_valid_after(now + valid if valid > -DAY else now + 2 * DAY)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(issuer, critical=False)
            .add_extension(own, critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        if authority:
            builder = builder.add_extension(SIGNS, critical=True)
        edwards = isinstance(self._key, ed25519.Ed25519PrivateKey)
        signed = builder.sign(self._key, None if edwards else hashes.SHA256())
        return signed.public_bytes(Encoding.PEM)

    def _write(self, name: str, data: bytes) -> str:
        path = self._directory / name
        path.write_bytes(data)
        return str(path)
