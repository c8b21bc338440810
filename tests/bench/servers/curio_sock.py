"""The echo server on curio's sockets."""

import curio
from curio import socket


async def echo(client):
    async with client:
        while data := await client.recv(65536):
            await client.sendall(data)


async def main():
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(4096)
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    async with listener:
        while True:
            client, _ = await listener.accept()
            await curio.spawn(echo, client, daemon=True)


curio.run(main)
