// The echo server of examples/echo.ts, and the article's "print(op)": every op of every task, as it happens.
// Terminal 1:  deno run --allow-net examples/trace.ts
// Terminals 2, 3 and so on: nc 127.0.0.1 25000   (watch terminal 1 while you type)
import { type Addr, type Coroutine, listen, Loop, type Socket } from "../mod.ts";

const loop = new Loop({ trace: ({ task, op, args }) => console.log(`${task}: ${[op, ...args].join(" ")}`) });

function* echoServer(port: number): Coroutine {
  using listener = listen({ hostname: "127.0.0.1", port });
  console.log("listening on", show(listener.addr));
  while (true) {
    const [client, addr] = yield* loop.sockAccept(listener);
    console.log("connect from", show(addr));
    loop.createTask(echoHandler(client), { name: show(addr) });
  }
}

function* echoHandler(client: Socket): Coroutine {
  using _ = client;
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
  loop.createTask(echoServer(Number(Deno.args[0] ?? 25000)), { name: "server" });
  await loop.runForever();
  Deno.exitCode = 1; // The server never returns: it has failed, and the loop has printed why.
}
