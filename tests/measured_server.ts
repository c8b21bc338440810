/**
 * tests/measured_server.ts: an echo server that tells what it holds; and, for tests, how to ask it.
 *
 * It listens on the Unix path that it is given, or with TLS, on any free port, if that is "tls". On SIGUSR2 it collects
 * garbage, twice, since buffers are given back a turn after they are unlinked, and prints a report. SIGTERM ends it.
 * The errors that its clients cause are printed by name.
 */

import { type Coroutine, listen, type Listener, listenTls, Loop, runningLoop, serve } from "../mod.ts";
import { signal, SignalQueue, sleep, type Socket, taskGroup } from "../mod.ts";
import { tls } from "./net_transports.ts";
import { Server } from "./server_process.ts";

/** What such a server says of itself. */
export interface Report {
  /** What its heap and its buffers hold, in bytes. */
  memory: number;
  /** How many tasks it has: two for itself, one that serves, one for each client. */
  tasks: number;
  /** How many of them wait for a client to read. */
  stuck: number;
}

/** Starts one; `address` is a path or "tls". */
export function startMeasured(address: string): Promise<Server> {
  const program = new URL(import.meta.url).pathname;
  return Server.start(["--v8-flags=--expose-gc", "--allow-read", "--allow-write", program, address]);
}

/** Asks for a report. */
export async function report(server: Server): Promise<Report> {
  const reports = server.count("report ");
  server.signal("SIGUSR2");
  await server.untilCount("report ", reports + 1);
  return JSON.parse(server.out.findLast((line) => line.startsWith("report "))!.slice("report ".length));
}

function* echo(client: Socket): Coroutine {
  const loop = runningLoop();
  for (let data; (data = yield* loop.sockRecv(client, 10_000)).length > 0;) yield* loop.sockSendall(client, data);
}

function* measure(requests: SignalQueue): Coroutine {
  const collect = (globalThis as unknown as { gc(): void }).gc;
  for (;;) {
    yield* requests.get();
    for (let i = 0; i < 2; i++) {
      collect();
      yield* sleep(10);
    }
    const { heapUsed, external } = Deno.memoryUsage();
    const tasks = [...runningLoop().tasks];
    const stuck = tasks.filter((task) => task.op?.[0] === "write_wait").length;
    console.log("report", JSON.stringify({ memory: heapUsed + external, tasks: tasks.length, stuck }));
  }
}

function open(address: string): Listener {
  if (address !== "tls") return listen({ transport: "unix", path: address });
  return listenTls({ hostname: "127.0.0.1", port: 0, ...tls.server });
}

function* main(address: string): Coroutine {
  using requests = new SignalQueue("SIGUSR2");
  yield* taskGroup(function* (group) {
    group.createTask(measure(requests));
    group.createTask(serve(open(address), echo, {
      onListen: (addr) => console.log("listening on", "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path),
      onError: (error) => console.log("error", (error as Error).name),
    }));
    yield* signal("SIGTERM");
    group.cancel();
  });
}

if (import.meta.main) await new Loop().run(main(Deno.args[0]));
