"""A client on trio that detects damaged replies with a checksum."""

import zlib

import trio


class DamagedReply(Exception):
    """The reply is not what was sent."""


async def get(host, port, message, context=None):
    """Return the reply to ``message``, over TLS if there is an SSL context.

    :raises DamagedReply: for a reply with a wrong checksum, or of another length.
    """
    frame = zlib.crc32(message).to_bytes(4, "big") + message
    if context is None:
        stream = await trio.open_tcp_stream(host, port)
    else:
        stream = await trio.open_ssl_over_tcp_stream(host, port, ssl_context=context)
    async with stream:
        await stream.send_all(frame)
        reply = b""
        while len(reply) < len(frame) and (part := await stream.receive_some()):
            reply += part
    checksum, content = reply[:4], reply[4:]
    if len(reply) != len(frame) or zlib.crc32(content).to_bytes(4, "big") != checksum:
        raise DamagedReply
    return content
