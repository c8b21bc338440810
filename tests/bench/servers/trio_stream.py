"""The echo server on trio's streams."""

import trio


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def main():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=4096)
    print(f"listening on 127.0.0.1:{listeners[0].socket.getsockname()[1]}", flush=True)
    await trio.serve_listeners(echo, listeners)


trio.run(main)
