// The echo server on yieldloop: examples/echo.ts without the prefix and the talk.
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
  while (true) {
    const data = yield* loop.sockRecv(client, 65536);
    if (data.length === 0) break;
    yield* loop.sockSendall(client, data);
  }
}

loop.createTask(echoServer());
await loop.runForever();
