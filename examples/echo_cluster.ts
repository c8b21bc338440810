// The echo server on many cores: a loop in each of N workers, all on one port; one Ctrl-C lets all of them finish.
// Terminal 1:  deno run --unstable-net --allow-net --allow-read examples/echo_cluster.ts   (then the port, N, drain ms)
// Terminals 2, 3 and so on: nc 127.0.0.1 25000     (the system chooses who serves you; terminal 1 tells which)
import { type Addr, all, type Coroutine, listen, Loop, runInWorker, serve, signal } from "../mod.ts";
import { type Socket, type TaskGroup, taskGroup, until } from "../mod.ts";

// ---- In the main thread: it serves nobody ---------------------------------------------------------------------------

function* cluster(port: number, workers: number, drainMs: number): Coroutine {
  yield* taskGroup(function* (group) {
    // Port 0 is any free one for the first worker, and the same for the others.
    const first = yield* start(group, [1, port, drainMs]);
    const others = Array.from({ length: workers - 1 }, (_, i) => start(group, [i + 2, first.port, drainMs]));
    const started = [first, ...yield* all(others)];
    console.log("listening on", `127.0.0.1:${first.port}`);
    yield* signal("SIGINT", "SIGTERM");
    console.log("draining");
    for (const worker of started) worker.stop();
  }); // Left when the last worker has ended. Should one fail, the others are ended and its error is thrown here.
}

/** Starts a worker and waits until it listens; a message to it will be to stop, one from it tells where it listens. */
function* start(group: TaskGroup, args: number[]): Coroutine<{ port: number; stop(): void }> {
  const { port1: here, port2: there } = new MessageChannel();
  group.createTask(runInWorker(import.meta.url, [there, ...args], { exportName: "work", transfer: [there] }));
  const heard = yield* until(new Promise<MessageEvent>((resolve) => here.onmessage = resolve));
  here.onmessage = null;
  return { port: heard.data, stop: () => here.postMessage("stop") };
}

// ---- In a worker: the server as it always is ------------------------------------------------------------------------

/** Serves until it is told to stop and its clients have left, or their time is up. */
export function work(main: MessagePort, id: number, port: number, drainTimeout: number): Promise<void> {
  const stop = new AbortController();
  const listener = listen({ hostname: "127.0.0.1", port, reusePort: true });
  main.onmessage = () => {
    stop.abort();
    main.close();
  };
  const loop = new Loop();
  return loop.run(serve(listener, (sock, addr) => echo(loop, id, sock, addr), {
    drainTimeout,
    signal: stop.signal,
    onListen: (addr) => main.postMessage(addr.port),
    onError: (error, addr) => console.error(addr ? show(addr) : "accept", `${error}`),
  }));
}

function* echo(loop: Loop, id: number, client: Socket, addr: Addr): Coroutine {
  console.log("connect from", show(addr), `in worker ${id}`);
  for (let data; (data = yield* loop.sockRecv(client, 10000)).length > 0;) {
    yield* loop.sockSendall(client, new Uint8Array([...GOT, ...data]));
  }
  console.log("connection closed");
}

const GOT = new TextEncoder().encode("Got: ");

function show(addr: Addr): string {
  return "port" in addr ? `${addr.hostname}:${addr.port}` : addr.path;
}

if (import.meta.main) {
  const [port = 25000, workers = navigator.hardwareConcurrency, drainMs = 5000] = Deno.args.map(Number);
  await new Loop().run(cluster(port, workers, drainMs)); // A second Ctrl-C ends everything at once.
}
