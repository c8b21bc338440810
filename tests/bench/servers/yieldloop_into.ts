// The echo server on yieldloop for bulk: each connection has one buffer, as in plain Deno, and no read needs fresh memory.
import { type Coroutine, listen, Loop, type Socket } from "../../../mod.ts";

const loop = new Loop();

function* echoServer(): Coroutine {
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  console.log(`listening on 127.0.0.1:${(listener.addr as Deno.NetAddr).port}`);
  while (true) {
    const [client] = yield* loop.sockAccept(listener);
    loop.createTask(echoHandler(client));
  }
}

function* echoHandler(client: Socket): Coroutine {
  using _ = client;
  const buffer = new Uint8Array(65536);
  while (true) {
    const n = yield* loop.sockRecvInto(client, buffer);
    if (n === 0) break;
    yield* loop.sockSendall(client, buffer.subarray(0, n));
  }
}

loop.createTask(echoServer());
await loop.runForever();
