"""PROXY headers: the examples of the specification, and malformed ones."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from echod.proxy import read_header

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
LONG = "ffff:" * 7 + "ffff"


def binary(command: int, kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    """Return a header of version 2."""
    size = len(body) if length is None else length
    return SIGNATURE + struct.pack("!BBH", command, kind, size) + body


def of_unix(name: bytes) -> bytes:
    return binary(0x21, 0x31, name.ljust(108, b"\0") + b"/run/to".ljust(108, b"\0"))


IPV4 = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + struct.pack("!HH", 40000, 7)
IPV6 = bytes.fromhex("20010db8" + 11 * "00" + "01") * 2 + struct.pack("!HH", 40000, 7)
ONE = IPv4Address("TCP", "192.0.2.1", 40000)
SIX = IPv6Address("TCP", "2001:db8::1", 40000)

GOOD: dict[str, tuple[bytes, Any]] = {
    # from the specification
    "2.1 example": (
        b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
        IPv4Address("TCP", "192.168.0.1", 56324),
    ),
    "2.1 longest TCP4": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        IPv4Address("TCP", "255.255.255.255", 65535),
    ),
    "2.1 longest TCP6": (
        f"PROXY TCP6 {LONG} {LONG} 65535 65535\r\n".encode(),
        IPv6Address("TCP", LONG, 65535),
    ),
    "2.1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "2.1 longest": (f"PROXY UNKNOWN {LONG} {LONG} 65535 65535\r\n".encode(), None),
    "2.1 unknown, then anything": (b"PROXY UNKNOWN \r anything : 1.2.3.4\r\n", None),
    "2.1 unknown, then not text": (b"PROXY UNKNOWN \xff\0\r\n", None),
    # one address in several notations
    "capitals": (b"PROXY TCP6 2001:DB8:0::0001 ::1 40000 7\r\n", SIX),
    "IPv4 in IPv6": (
        b"PROXY TCP6 ::FFFF:C000:0201 ::1 1 7\r\n",
        IPv6Address("TCP", "::ffff:192.0.2.1", 1),
    ),
    "port 0": (b"PROXY TCP4 192.0.2.1 192.0.2.2 0 0\r\n", IPv4Address("TCP", "192.0.2.1", 0)),
    "2.2 TCP over IPv4": (binary(0x21, 0x11, IPV4), ONE),
    "2.2 TCP over IPv6": (binary(0x21, 0x21, IPV6), SIX),
    "2.2 UNIX stream": (of_unix(b"/run/from"), UNIXAddress(b"/run/from")),
    "2.2 UNIX, longest path": (of_unix(b"/" * 108), UNIXAddress(b"/" * 108)),
    "2.2 UNIX, abstract": (of_unix(b"\0a\0b"), UNIXAddress(b"\0a\0b")),
    "2.2 UNIX, unnamed": (of_unix(b""), UNIXAddress(None)),
    "2.2 UNIX, garbage after the path": (of_unix(b"/a\0garbage"), UNIXAddress(b"/a")),
    "2.2 local": (binary(0x20, 0x00), None),
    "2.2 local with addresses": (binary(0x20, 0x11, IPV4), None),
    "2.2 local, with a family that is ignored": (binary(0x20, 0xFF, b"anything"), None),
    "2.2 unspecified": (binary(0x21, 0x00), None),
    "2.2 unspecified with addresses": (binary(0x21, 0x00, IPV4), None),
    "2.2 UDP over IPv4": (binary(0x21, 0x12, IPV4), None),
    "2.2 UDP over IPv6": (binary(0x21, 0x22, IPV6), None),
    "2.2 UNIX datagram": (binary(0x21, 0x32, bytes(216)), None),
    "2.2.4 type-length-value blocks": (binary(0x21, 0x11, IPV4 + b"\x04\0\3abc\x03\0\4abcd"), ONE),
    "2.2 longest": (binary(0x21, 0x11, IPV4.ljust(65535, b"\4")), ONE),
}

BAD = {
    "no signature": b"GET / HTTP/1.1\r\n\r\n",
    "no signature, from its first byte": b"h",
    "lower case": b"proxy TCP4 192.0.2.1 192.0.2.2 1 7\r\n",
    "no family": b"PROXY \r\n",
    "undefined family": b"PROXY UDP4 192.0.2.1 192.0.2.2 1 7\r\n",
    "a word too few": b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
    "a word too many": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 7 9\r\n",
    "two spaces": b"PROXY TCP4  192.0.2.1 192.0.2.2 1 7\r\n",
    "IPv6 in TCP4": b"PROXY TCP4 ::1 ::1 1 7\r\n",
    "IPv4 in TCP6": b"PROXY TCP6 192.0.2.1 192.0.2.2 1 7\r\n",
    "leading zeros": b"PROXY TCP4 192.0.2.01 192.0.2.2 1 7\r\n",
    "three numbers": b"PROXY TCP4 192.0.2 192.0.2.2 1 7\r\n",
    "a zone": b"PROXY TCP6 fe80::1%lo ::1 1 7\r\n",
    "a host name": b"PROXY TCP4 localhost localhost 1 7\r\n",
    "a null byte": b"PROXY TCP4 192.0.2.1\0 192.0.2.2 1 7\r\n",
    "invalid destination": b"PROXY TCP4 192.0.2.1 x 1 7\r\n",
    "invalid port": b"PROXY TCP4 192.0.2.1 192.0.2.2 http 7\r\n",
    "a port below 0": b"PROXY TCP4 192.0.2.1 192.0.2.2 -1 7\r\n",
    "a port above 65535": b"PROXY TCP4 192.0.2.1 192.0.2.2 65536 7\r\n",
    "a port with a leading zero": b"PROXY TCP4 192.0.2.1 192.0.2.2 01 7\r\n",
    "no source port": b"PROXY TCP4 192.0.2.1 192.0.2.2  7\r\n",
    "invalid destination port": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 70000\r\n",
    "not UTF-8": b"PROXY TCP4 \xff\xfe 192.0.2.2 1 7\r\n",
    "digits of another script": "PROXY TCP4 192.0.2.1 192.0.2.2 \u0661 7\r\n".encode(),
    "LF alone": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 7\n",
    "CR before the end": b"PROXY TCP4 192.0.2.1 192.0.2.2 1 7\r \r\n",
    "no end": b"PROXY UNKNOWN".ljust(107, b"x"),
    "its end one byte late": b"PROXY UNKNOWN".ljust(106, b"x") + b"\r\n",
    "version 1 in binary": binary(0x11, 0x11, IPV4),
    "version 3": binary(0x31, 0x11, IPV4),
    "undefined command": binary(0x22, 0x11, IPV4),
    "undefined family, version 2": binary(0x21, 0x41, IPV4),
    "undefined transport": binary(0x21, 0x13, IPV4),
    "too short for IPv4": binary(0x21, 0x11, IPV4[:-1]),
    "too short for IPv6": binary(0x21, 0x21, IPV6[:-1]),
    "too short for UNIX": binary(0x21, 0x31, bytes(215)),
}


beginnings = st.sampled_from(
    [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", SIGNATURE, SIGNATURE + b"!"]
)
forms = st.builds(
    bytes.__add__,
    st.sampled_from([header for header, _ in GOOD.values()] + list(BAD.values())),
    st.binary(max_size=20),
)
broken = st.builds(
    lambda data, where, byte: data[: where % len(data)] + byte + data[where % len(data) + 1 :],
    forms,
    st.integers(0, 300),
    st.binary(max_size=2),
)


class HeaderTests(SynchronousTestCase):
    def test_header(self) -> None:
        """Each form of the specification is read, whatever bytes follow it."""
        for name, (header, peer) in GOOD.items():
            expected = (peer, len(header))
            self.assertEqual(read_header(header), expected, name)
            self.assertEqual(read_header(bytearray(header + b"PROXY hello\r\n")), expected, name)

    def test_header_in_parts(self) -> None:
        """A header is incomplete as long as one byte is missing."""
        for name, (header, _) in GOOD.items():
            for size in {*range(min(len(header), 300)), len(header) - 1}:
                self.assertIsNone(read_header(header[:size]), name)

    def test_malformed(self) -> None:
        """A malformed header raises ValueError, at once or when it is complete."""
        for name, header in BAD.items():
            with self.assertRaisesRegex(ValueError, "PROXY", msg=name):
                read_header(header)

    @given(
        data=st.one_of(st.builds(bytes.__add__, beginnings, st.binary(max_size=300)), forms, broken)
    )
    @example(data=b"PROXY TCP4 1.1.1.1 1.1.1.1 1 " + b"1" * 80 + b"\r\n")
    def test_any_bytes(self, data: bytes) -> None:
        """Any bytes are a header, malformed, or incomplete; more bytes never change the result."""

        def result(part: bytes) -> object:
            try:
                return read_header(part)
            except ValueError:
                return ValueError

        whole = result(data)
        results = [result(data[:size]) for size in range(len(data))] if len(data) < 1000 else []
        self.assertTrue(all(each in (None, whole) for each in results))
        self.assertTrue(whole is not None or len(data) < 107 or data.startswith(SIGNATURE))
