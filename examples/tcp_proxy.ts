// A TCP proxy: what comes in goes on to another address, and back; each direction ends on its own.
// Terminal 1:  deno run --allow-net examples/tcp_proxy.ts 127.0.0.1:6379     (at the end: a port other than 25000)
// Terminal 2:  redis-cli -p 25000                                            (with redis-server at the other end)
import {
  type Addr,
  all,
  type CancelScope,
  cancelScope,
  connect,
  type Coroutine,
  failAfter,
  listen,
  Loop,
  serve,
  type Socket,
  TimeoutError,
} from "../mod.ts";

/** How long it may take to connect to the other end, in milliseconds. */
const CONNECT_TIMEOUT = 5000;
/** How long a connection may be silent in both directions, in milliseconds. */
const IDLE_TIMEOUT = 5 * 60_000;

const loop = new Loop();

function* proxy(client: Socket, target: { hostname: string; port: number }): Coroutine {
  using server = yield* failAfter(CONNECT_TIMEOUT, connect(target));
  client.setNoDelay();
  server.setNoDelay();
  const finished = yield* cancelScope(function* (silence) {
    silence.deadline = loop.time() + IDLE_TIMEOUT;
    return yield* all([pump(client, server, silence), pump(server, client, silence)]);
  });
  if (!finished) throw new TimeoutError(`Nothing was said for ${IDLE_TIMEOUT} ms`);
}

/** One direction. It reads no faster than it can write: a slow receiver slows the sender down, not the proxy. */
function* pump(from: Socket, to: Socket, silence: CancelScope): Coroutine {
  for (let data; (data = yield* loop.sockRecv(from, 65536)).length > 0;) {
    yield* loop.sockSendall(to, data);
    silence.deadline = loop.time() + IDLE_TIMEOUT; // Each word, in either direction, puts the end off.
  }
  yield* to.closeWrite(); // The other direction goes on.
}

function parse(target = ""): { hostname: string; port: number } {
  const [, hostname, port] = /^(.+):(\d+)$/.exec(target) ?? [];
  if (hostname) return { hostname, port: Number(port) };
  console.error("Usage: tcp_proxy.ts HOST:PORT [PORT]");
  Deno.exit(2);
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  const target = parse(Deno.args[0]);
  const listener = listen({ hostname: "127.0.0.1", port: Number(Deno.args[1] ?? 25000) });
  await loop.run(serve(listener, (client) => proxy(client, target), {
    onListen: (addr) => console.log("listening on", show(addr)),
    onError: (error, addr) => console.error(addr ? show(addr) : "accept", `${error}`),
  }));
}
