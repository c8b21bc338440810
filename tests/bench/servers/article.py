"""The echo server on a loop like the article's: a deque, a selector, and coroutines that yield what they wait for."""

import socket
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from types import coroutine


@coroutine
def read_wait(sock):
    yield "read_wait", sock


@coroutine
def write_wait(sock):
    yield "write_wait", sock


class Loop:
    def __init__(self):
        self.ready = deque()
        self.selector = DefaultSelector()

    async def sock_accept(self, sock):
        await read_wait(sock)
        return sock.accept()

    async def sock_recv(self, sock, max_bytes):
        await read_wait(sock)
        return sock.recv(max_bytes)

    async def sock_sendall(self, sock, data):
        while data:
            await write_wait(sock)
            data = data[sock.send(data) :]

    def create_task(self, coro):
        self.ready.append(coro)

    def run_forever(self):
        while True:
            while not self.ready:
                for key, _ in self.selector.select():
                    self.ready.append(key.data)
                    self.selector.unregister(key.fileobj)
            while self.ready:
                self.current_task = self.ready.popleft()
                try:
                    op, *args = self.current_task.send(None)
                    getattr(self, op)(*args)
                except StopIteration:
                    pass

    def read_wait(self, sock):
        self.selector.register(sock, EVENT_READ, self.current_task)

    def write_wait(self, sock):
        self.selector.register(sock, EVENT_WRITE, self.current_task)


async def echo(loop, client):
    with client:
        while data := await loop.sock_recv(client, 65536):
            await loop.sock_sendall(client, data)


async def serve(loop):
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    print(f"listening on 127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        client, _ = await loop.sock_accept(listener)
        client.setblocking(False)
        loop.create_task(echo(loop, client))


loop = Loop()
loop.create_task(serve(loop))
loop.run_forever()
