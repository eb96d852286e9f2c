"""TLS faults: handshakes that fail in one known way, and ends without TLS's closing alert.

- A connection has at most one fault of the handshake: the first in its plan that fires. It fires
  when the first byte of the handshake arrives.
- The certificates ``wrong-name`` and ``expired`` are issued by the port's own certificate, and a
  client that trusts that one finds no other error. A port whose certificate cannot issue others
  (CA:TRUE) has no such faults: a client would report an invalid CA certificate, and a test of a
  client that does not check names would pass.
- The certificate ``self-signed`` has the names of the port's certificate, and its own key.
- ``no-close-notify`` fires when echod ends the connection: FIN follows the last byte of the reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from echod.arguments import check_type
from echod.certificates import Certificates, Identity, can_issue, extension, issue, names_file
from echod.events import Reason
from echod.factory import EchoFactory
from echod.faultplan import ISSUED, NON_CA_TLS, TLS
from echod.faultstream import StreamFaults
from echod.faulty import FaultyEchoFactory
from echod.tls import TLSFactory, server_end
from echod.tlstransport import TLSTransport
from echod.transport import resets_on_error, send_fin

OF_CERTIFICATES: Final = (*ISSUED, "self-signed")
OF_HANDSHAKE: Final = ("stall", "abort", "old-version", *OF_CERTIFICATES)
"""The faults that present another certificate, and all faults of a handshake."""

WRONG_NAME: Final = "wrong.invalid"
"""The host name in the certificate ``wrong-name``: no host has it (RFC 6761 6.4)."""

OLD_CIPHERS: Final = b"DEFAULT:@SECLEVEL=0"
"""OpenSSL allows TLS 1.1, which signs with MD5 and SHA-1, at security level 0 alone."""

DAY: Final = timedelta(days=1)
"""The certificate ``expired`` was valid for a day, which ended a day before the port's begins."""


class FaultyTLSTransport(TLSTransport):
    """TLS over the transport of a kernel socket, with faults.

    The parameters are those of :class:`~echod.tlstransport.TLSTransport`.
    """

    factory: FaultyTLSFactory
    _half_closed = False

    def __init__(self, factory: Any, pending: Any, tls: Any, server: EchoFactory) -> None:
        super().__init__(factory, pending, tls, server)
        self._stream: StreamFaults = pending.admission

    @resets_on_error
    def dataReceived(self, data: bytes) -> None:
        """Begin the handshake with its fault, if there is one, and continue it."""
        fault = None if self.ciphertext_in else self._fire(OF_HANDSHAKE)
        if fault is not None:
            self.wrappedProtocol.reason = Reason.FAULT
            if fault in {"stall", "abort"}:
                self.disconnecting = True  # nothing is decrypted or answered any more
            else:
                self._tls = server_end(self.factory.context_of(fault))
        super().dataReceived(data)
        if fault == "abort":
            self.wrappedProtocol.refuse(Reason.FAULT)

    def write(self, data: bytes) -> None:
        """Encrypt ``data`` and send it at once: a fault that follows may reset the connection."""
        super().write(data)
        if self._delivering and self.connected:
            self._flush()

    def finish(self) -> None:
        """Send the closing alert, unless a fault leaves it out."""
        ends = self.connected and not self.disconnecting and not self._handshaking
        if self._half_closed or (ends and self._fire(("no-close-notify",))):
            self.disconnecting = True
        else:
            super().finish()

    def loseWriteConnection(self) -> None:
        """Send the closing alert and FIN, and continue to read."""
        self.finish()
        self.disconnecting = False
        self._half_closed = True
        send_fin(self.transport)

    def _fire(self, names: Sequence[str]) -> str | None:
        return self._stream.fire_first(names, self._server.clock.seconds())


class FaultyTLSFactory(TLSFactory):
    """Serve ``factory`` over TLS with the faults of its plan, on any stream endpoint.

    :param factory: serves each connection after its handshake, and has the plan.
    :param certificates: those of the port.
    :raises TypeError: for an argument of another type.
    :raises ValueError: for a plan with rules that the port cannot have.
    :raises BadCertificates: if no certificate can be derived from the port's.
    """

    protocol = FaultyTLSTransport

    def __init__(self, factory: FaultyEchoFactory, certificates: Certificates) -> None:
        check_type("factory", factory, FaultyEchoFactory, "a FaultyEchoFactory")
        check_type("certificates", certificates, Certificates, "Certificates")
        super().__init__(factory, certificates)
        self._certificates = certificates
        factory.faults.serves = self.serves(certificates)
        factory.faults.plan.check(factory.faults.serves)
        self._make_contexts()

    @staticmethod
    def serves(certificates: Certificates) -> str:
        """Return what a port with ``certificates`` serves, a key of :data:`~echod.faultplan.ON`.

        :raises BadCertificates: if their extensions cannot be read.
        """
        with names_file(certificates.file):
            return TLS if can_issue(certificates.identity.certificate) else NON_CA_TLS

    def context_of(self, fault: str) -> SSL.Context:
        """Return the OpenSSL context of a handshake with ``fault``."""
        if self._port is not self._certificates.identity:  # it was loaded again
            self._make_contexts()
        return self._contexts[fault]

    def _make_contexts(self) -> None:
        port, make_context = self._certificates.identity, self._certificates.make_context
        with names_file(self._certificates.file):
            derived = {fault: derive(port, fault) for fault in OF_CERTIFICATES}
        old = make_context(port)
        old.set_cipher_list(OLD_CIPHERS)
        old.set_min_proto_version(SSL.TLS1_1_VERSION)
        old.set_max_proto_version(SSL.TLS1_1_VERSION)
        self._contexts = {fault: make_context(each) for fault, each in derived.items()}
        self._contexts["old-version"] = old
        self._port = port


def derive(port: Identity, fault: str) -> Identity:
    """Return the key and certificates that ``port`` presents in a handshake with ``fault``."""
    own = port.certificate
    # Not the subject of the port's certificate: if subject and issuer are equal, clients take the
    # certificate for a self-signed one (RFC 5280 3.2).
    subject = x509.Name([*own.subject, x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, fault)])
    names = extension(own, x509.SubjectAlternativeName)
    start, end = own.not_valid_before_utc, own.not_valid_after_utc
    if fault == "wrong-name":
        names = x509.SubjectAlternativeName([x509.DNSName(WRONG_NAME)])
    elif fault == "expired":
        start, end = start - 2 * DAY, start - DAY
    issuer = None if fault == "self-signed" else port
    key, certificate = issue(subject, names, (start, end), issuer)
    return port._replace(
        key=key, certificate=certificate, chain=[own, *port.chain] if issuer else []
    )
