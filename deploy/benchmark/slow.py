"""An upstream of bodies without end: offers fast, takes 64 KiB a second. /count answers how many are open, else 100 bytes."""

import asyncio
import socket
import sys

open_exchanges = 0
OFFERED, TAKEN = bytes(64 << 10), 6 << 10


async def serve(reader, writer):
    global open_exchanges
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target = head.split(b" ")[:2]
            if target != b"/slow":
                body = str(open_exchanges).encode() if target == b"/count" else b"x" * 100
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
                continue
            open_exchanges += 1
            try:
                await crawl(reader, writer, method)
            finally:
                open_exchanges -= 1
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def crawl(reader, writer, method):
    if method == b"GET":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        while True:
            # The buffers on the way fill up; from then on this goes as fast as the client reads.
            writer.write(OFFERED)
            await writer.drain()
            await asyncio.sleep(0.05)
    while await reader.read(TAKEN):
        await asyncio.sleep(0.1)


async def main():
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024)
    # Small, so that a body fills the gateway's buffers and not the kernel's.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 << 10)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
    server = await asyncio.start_server(serve, sock=listener, limit=64 << 10)
    await server.serve_forever()


asyncio.run(main())
