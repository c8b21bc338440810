/**
 * tests/slow_server.ts: an echo server for `slow_reader_test.ts`, on the Unix path it is given.
 *
 * On SIGUSR2 it collects garbage, twice, since buffers are given back a turn after they are unlinked, and prints what
 * its heap and its buffers hold, in bytes, and how many clients it waits for to read. SIGTERM ends it.
 */

import {
  type Coroutine,
  listen,
  Loop,
  runningLoop,
  serve,
  signal,
  SignalQueue,
  sleep,
  type Socket,
  taskGroup,
} from "../mod.ts";

const collect = (globalThis as unknown as { gc(): void }).gc; // Deno runs with --expose-gc.

function* echo(client: Socket): Coroutine {
  const loop = runningLoop();
  for (let data; (data = yield* loop.sockRecv(client, 10_000)).length > 0;) yield* loop.sockSendall(client, data);
}

function* measure(requests: SignalQueue): Coroutine {
  for (;;) {
    yield* requests.get();
    for (let i = 0; i < 2; i++) {
      collect();
      yield* sleep(10);
    }
    const { heapUsed, external } = Deno.memoryUsage();
    const stuck = [...runningLoop().tasks].filter((task) => task.op?.[0] === "write_wait");
    console.log("memory", heapUsed + external, stuck.length);
  }
}

function* main(path: string): Coroutine {
  using requests = new SignalQueue("SIGUSR2");
  yield* taskGroup(function* (group) {
    group.createTask(measure(requests));
    const onListen = () => console.log("listening on", path);
    group.createTask(serve(listen({ transport: "unix", path }), echo, { onListen }));
    yield* signal("SIGTERM");
    group.cancel();
  });
}

if (import.meta.main) await new Loop().run(main(Deno.args[0]));
