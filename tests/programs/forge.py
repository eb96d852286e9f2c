"""Send datagrams with forged sources on a link, and print the replies.

``python tests/programs/forge.py LINK MAC`` reads the datagrams from standard input as a JSON list
of [source, port, destination, port, payload, count]. The last datagram is not forged. The link
keeps the order, so its reply comes after all others. Standard output gets the replies in the same
form.
"""

from __future__ import annotations

import json
import socket
import struct
import sys

IP, IP6 = 0x0800, 0x86DD


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    words = struct.unpack(f"!{len(data) // 2}H", data)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, port: int, destination: str, to: int, payload: bytes) -> tuple[int, bytes]:
    """Return the EtherType and the bytes of an IP packet that holds a datagram."""
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", port, to, length, 0) + payload
    if ":" not in source:
        ends = socket.inet_aton(source) + socket.inet_aton(destination)
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, 17, 0) + ends
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return IP, head + udp  # checksum 0: no checksum (RFC 768)
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(
        socket.AF_INET6, destination
    )
    pseudo = ends + struct.pack("!IBBBB", length, 0, 0, 0, 17) + udp + b"\0" * (length % 2)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo) or 0xFFFF) + udp[8:]
    return IP6, struct.pack("!IHBB", 6 << 28, length, 17, 64) + ends + udp


def parsed(kind: int, data: bytes) -> list[object] | None:
    """Return the datagram in an IP packet, or None if it holds none."""
    if kind == IP and data[9] == 17:
        start = (data[0] & 15) * 4
        source, destination = socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
    elif kind == IP6 and data[6] == 17:
        start = 40
        source, destination = (
            socket.inet_ntop(socket.AF_INET6, data[at : at + 16]) for at in (8, 24)
        )
    else:
        return None
    port, to, length, _ = struct.unpack("!HHHH", data[start : start + 8])
    return [source, port, destination, to, data[start + 8 : start + length].decode(), 1]


def main() -> None:
    link, mac = sys.argv[1:]
    rows = json.load(sys.stdin)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))  # ETH_P_ALL
    sock.bind((link, 0x0003))
    sock.settimeout(10)
    hardware = bytes.fromhex(mac.replace(":", ""))
    for source, port, destination, to, payload, count in rows:
        kind, data = packet(source, port, destination, to, payload.encode())
        for _ in range(count):
            sock.sendto(data, (link, kind, 0, 0, hardware))
    source, port, destination, to, payload, _ = rows[-1]
    last = [destination, to, source, port, payload, 1]
    found = []
    while not found or found[-1] != last:
        data, (_, kind, direction, *_) = sock.recvfrom(65_536)
        answer = parsed(kind, data) if direction != socket.PACKET_OUTGOING else None
        if answer is not None:
            found.append(answer)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
