"""A client on asyncio that gives up on a slow reply, and retries."""

import asyncio
from contextlib import closing


async def get(host, port, message, timeout=0.2, attempts=3):
    """Return the reply to ``message``; if it is late or incomplete, ask again."""
    for attempt in range(1, attempts + 1):
        try:
            return await asyncio.wait_for(get_once(host, port, message), timeout)
        except (OSError, EOFError, asyncio.TimeoutError):
            if attempt == attempts:
                raise


async def get_once(host, port, message):
    """Return the reply to ``message``."""
    reader, writer = await asyncio.open_connection(host, port)
    with closing(writer):
        writer.write(message)
        return await reader.readexactly(len(message))
