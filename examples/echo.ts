import { type Addr, type Coroutine, listen, Loop, type Socket } from "../mod.ts";

const loop = new Loop();
const encoder = new TextEncoder();

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
  using _closed = client;
  while (true) {
    const data = yield* loop.sockRecv(client, 10000);
    if (data.length === 0) break;
    yield* loop.sockSendall(client, concat("Got: ", data));
  }
  console.log("connection closed");
}

function concat(prefix: string, data: Uint8Array): Uint8Array {
  return new Uint8Array([...encoder.encode(prefix), ...data]);
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  loop.createTask(echoServer(Number(Deno.args[0] ?? 25000)));
  await loop.runForever();
}
