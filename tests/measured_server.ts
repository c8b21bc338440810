/**
 * tests/measured_server.ts: an echo server that tells what it holds; and, for tests, how to ask it.
 *
 * It listens on the Unix path that it is given, or on any free port if that is "tcp" or "tls". On SIGUSR2 it collects
 * garbage, twice, since the first collection only unlinks buffers, and prints a report. SIGTERM ends it: clients that are
 * still there are cancelled soon. The errors that its clients cause are printed by name.
 */

import { type Coroutine, listen, type Listener, listenTls, Loop, runningLoop, serve } from "../mod.ts";
import { signal, SignalQueue, sleep, type Socket, Stream, taskGroup } from "../mod.ts";
import { tls } from "./net_transports.ts";
import { Server } from "./server_process.ts";

/** What such a server says of itself. */
export interface Report {
  /** What its heap and its buffers hold, in bytes. */
  memory: number;
  /** How many tasks it has: two for itself, two that serve, one for each client. */
  tasks: number;
  /** How many of them wait for a client to read. */
  stuck: number;
}

/** Starts one; `address` is a path, "tcp" or "tls". */
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
  const stream = new Stream(client);
  for (let data; (data = yield* stream.read(10_000)).length > 0;) yield* stream.write(data);
}

function* measure(requests: SignalQueue): Coroutine {
  const collect = (globalThis as unknown as { gc(): void }).gc;
  for (;;) {
    yield* requests.get();
    for (let i = 0; i < 2; i++) {
      collect();
      yield* sleep(0);
    }
    const { heapUsed, external } = Deno.memoryUsage();
    const tasks = [...runningLoop().tasks];
    const stuck = tasks.filter((task) => task.op?.[0] === "write_wait").length;
    console.log("report", JSON.stringify({ memory: heapUsed + external, tasks: tasks.length, stuck }));
  }
}

function open(address: string): Listener {
  const free = { hostname: "127.0.0.1", port: 0 };
  if (address === "tcp") return listen(free);
  if (address === "tls") return listenTls({ ...free, ...tls.server });
  return listen({ transport: "unix", path: address });
}

function* main(address: string): Coroutine {
  using requests = new SignalQueue("SIGUSR2");
  yield* taskGroup(function* (group) {
    group.createTask(measure(requests));
    group.createTask(serve(open(address), echo, {
      drainTimeout: 20,
      onListen: (addr) => console.log("listening on", "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path),
      onError: (error) => console.log("error", (error as Error).name),
    }));
    yield* signal("SIGTERM");
    group.cancel();
  });
}

if (import.meta.main) {
  const loop = new Loop();
  await loop.run(main(Deno.args[0]));
  console.log("ended with", [...loop.tasks].length, "tasks");
}
