"""A TCP port whose connections each travel in a `ws-tunnel` of their own, in messages of 1, 7 and 1000 bytes by turns.

Prints its port, then serves until its standard input ends. Arguments: URL, and for wss a CA file.
"""

import asyncio
import itertools
import ssl
import sys

from websockets.asyncio.client import connect

SIZES = (1, 7, 1000)


async def upwards(reader, tunnel):
    sizes = itertools.cycle(SIZES)
    while data := await reader.read(65536):
        while data:
            size = next(sizes)
            await tunnel.send(data[:size])
            data = data[size:]
    await tunnel.close()


async def downwards(tunnel, writer):
    async for message in tunnel:
        writer.write(message)
        await writer.drain()
    writer.close()


async def carry(reader, writer):
    url, *ca = sys.argv[1:]
    trust = ssl.create_default_context(cafile=ca[0]) if ca else None
    async with connect(url, ssl=trust, subprotocols=["ws-tunnel"], compression=None, proxy=None) as tunnel:
        assert tunnel.subprotocol == "ws-tunnel", tunnel.subprotocol
        await asyncio.gather(upwards(reader, tunnel), downwards(tunnel, writer), return_exceptions=True)


async def main():
    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
