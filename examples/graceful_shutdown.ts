// A server that ends well: at the first Ctrl-C it lets its clients finish, for five seconds; the second ends it at once.
// Terminal 1:  deno run --allow-net examples/graceful_shutdown.ts     (at the end: the port, the milliseconds to drain)
// Terminal 2:  nc 127.0.0.1 25000    The exit code: 0 all finished, 1 the time was up, 130 a second Ctrl-C came.
import { type Addr, Cancelled, type Coroutine, listen, Loop, moveOnAfter, race } from "../mod.ts";
import { SignalQueue, type Socket, type TaskGroup, taskGroup } from "../mod.ts";

const loop = new Loop();
const GOT = new TextEncoder().encode("Got: ");

function* accept(port: number, clients: TaskGroup): Coroutine<never> {
  using listener = listen({ hostname: "127.0.0.1", port }); // Closed on the way out: new clients are refused.
  console.log("listening on", show(listener.addr));
  while (true) {
    const [client, addr] = yield* loop.sockAccept(listener);
    console.log("connect from", show(addr));
    clients.createTask(echo(client));
  }
}

function* echo(client: Socket): Coroutine {
  using _ = client;
  try {
    for (let data; (data = yield* loop.sockRecv(client, 10000)).length > 0;) {
      yield* loop.sockSendall(client, new Uint8Array([...GOT, ...data]));
    }
  } catch (error) {
    if (error instanceof Cancelled) throw error;
    console.error(error); // A client that breaks off must not end the others.
  }
  console.log("connection closed");
}

/** Serves, drains, and returns the exit code. */
function* server(port: number, drainMs: number): Coroutine<number> {
  using signals = new SignalQueue("SIGINT"); // It listens all the time, so that no Ctrl-C falls between two waits.
  let code = 0;
  yield* taskGroup(function* (outer) {
    yield* taskGroup(function* (clients) {
      yield* race([accept(port, clients), signals.get()]);
      console.log(`draining, connections: ${clients.size}`);
      outer.createTask(function* (): Coroutine {
        code = (yield* moveOnAfter(drainMs, signals.get())) ? 130 : 1;
        clients.cancel("the drain is over");
      }());
    }); // Left when every client has gone or was cancelled.
    outer.cancel("nobody is left to wait for");
  });
  return code;
}

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  Deno.exitCode = await loop.run(server(Number(Deno.args[0] ?? 25000), Number(Deno.args[1] ?? 5000)));
  if (Deno.exitCode === 130) Deno.exit(); // At once: what closed sockets still have to deliver is dropped.
}
