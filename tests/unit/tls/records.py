"""TLS 1.3 records made by hand: records that no library sends (RFC 8446 5.2, 5.3 and 7.2)."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import struct
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

DATA: Final = 23
HANDSHAKE: Final = 22
KEY_UPDATE: Final = b"\x18\0\0\1"


class Records:
    """Encrypt a client's records, from the first one after its handshake.

    :param secret: the client's CLIENT_TRAFFIC_SECRET_0, with TLS_AES_256_GCM_SHA384.
    """

    def __init__(self, secret: bytes) -> None:
        self._renew(secret)

    def _renew(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = AESGCM(self._expand(b"key", 32))
        self._iv = int.from_bytes(self._expand(b"iv", 12), "big")
        self._number = 0

    def _expand(self, label: bytes, size: int) -> bytes:
        """Return HKDF-Expand-Label with an empty context (RFC 8446 7.1), of one block at most."""
        name = b"tls13 " + label
        info = struct.pack("!HB", size, len(name)) + name + b"\0\1"
        return hmac.digest(self._secret, info, hashlib.sha384)[:size]

    def record(self, content: bytes, kind: int = DATA) -> bytes:
        """Return ``content`` as one record."""
        nonce = (self._iv ^ self._number).to_bytes(12, "big")
        self._number += 1
        header = b"\x17\3\3" + struct.pack("!H", len(content) + 17)
        return header + self._cipher.encrypt(nonce, content + bytes([kind]), header)

    def key_update(self, *, answer: bool = False) -> bytes:
        """Return a KeyUpdate of 27 bytes.

        :param answer: whether it requests one in return.
        """
        record = self.record(KEY_UPDATE + bytes([answer]), HANDSHAKE)
        self._renew(self._expand(b"traffic upd", 48))
        return record


def client_secret(keylog: Path) -> bytes:
    """Return the last client's secret in a key log (``SSLContext.keylog_filename``)."""
    lines = [line.split() for line in keylog.read_text().splitlines()]
    return bytes.fromhex([words[2] for words in lines if words[0] == "CLIENT_TRAFFIC_SECRET_0"][-1])


def client_context(authority: str, keylog: Path) -> ssl.SSLContext:
    """Return a context that trusts ``authority``, and logs its secrets in ``keylog``."""
    context = ssl.create_default_context(cafile=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.keylog_filename = str(keylog)
    return context
