"""The echo server on asyncio's sock_* operations; with the argument "uvloop", on uvloop's loop."""

import asyncio
import socket
import sys


async def echo(loop, client):
    with client:
        while data := await loop.sock_recv(client, 65536):
            await loop.sock_sendall(client, data)


async def main():
    loop = asyncio.get_running_loop()
    tasks = set()
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        listener.setblocking(False)
        print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            client, _ = await loop.sock_accept(listener)
            task = loop.create_task(echo(loop, client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


if "uvloop" in sys.argv:
    import uvloop

    uvloop.install()
asyncio.run(main())
