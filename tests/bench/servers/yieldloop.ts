// The echo server on yieldloop: examples/echo.ts without the prefix and the talk. With the argument `into` it reads into one
// buffer for each connection, as plain Deno does, so that no read needs fresh memory.
import { type Coroutine, listen, Loop, type Socket } from "../../../mod.ts";

const loop = new Loop();
const echoHandler = Deno.args[0] === "into" ? echoFromBuffer : echo;

function* echoServer(): Coroutine {
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  console.log(`listening on 127.0.0.1:${listener.addr.port}`);
  while (true) {
    const [client] = yield* loop.sockAccept(listener);
    loop.createTask(echoHandler(client));
  }
}

function* echo(client: Socket): Coroutine {
  using _ = client;
  while (true) {
    const data = yield* loop.sockRecv(client, 65536);
    if (data.length === 0) break;
    yield* loop.sockSendall(client, data);
  }
}

function* echoFromBuffer(client: Socket): Coroutine {
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
