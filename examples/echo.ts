// The echo server on yieldloop: many clients at once, in one thread, and it reads as if there were only one.
// Terminal 1:  deno run --allow-net examples/echo.ts     (a port other than 25000 goes at the end, 0 is any free one)
// Terminals 2, 3 and so on: nc 127.0.0.1 25000           (type a line, and it comes back after a "Got: ")
import { type Addr, type Coroutine, listen, Loop, type Socket } from "../mod.ts";

const loop = new Loop();

function* echoServer(port: number): Coroutine {
  using listener = listen({ hostname: "127.0.0.1", port });
  console.log("listening on", show(listener.addr));
  while (true) {
    const [client, addr] = yield* loop.sockAccept(listener);
    console.log("connect from", show(addr));
    loop.createTask(echoHandler(client));
  }
}

function* echoHandler(client: Socket): Coroutine {
  using _ = client; // Python's "with client": closed on every way out.
  while (true) {
    const data = yield* loop.sockRecv(client, 10000);
    if (data.length === 0) break;
    yield* loop.sockSendall(client, concat(GOT, data));
  }
  console.log("connection closed");
}

const GOT = new TextEncoder().encode("Got: ");

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  loop.createTask(echoServer(Number(Deno.args[0] ?? 25000)));
  await loop.runForever();
  Deno.exitCode = 1; // The server never returns: it has failed, and the loop has printed why.
}
