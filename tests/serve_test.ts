/**
 * The rules N10 and N12 of `serve`: on a listener in memory in a simulated world, then on real sockets.
 */

import { assert, assertEquals, assertInstanceOf, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import {
  type Addr,
  all,
  BusyError,
  Cancelled,
  cancelScope,
  checkpoint,
  ClosedError,
  connect,
  type Coroutine,
  EVENT_READ,
  EVENT_WRITE,
  failAfter,
  listen,
  type Listener,
  Loop,
  moveOnAfter,
  race,
  readWait,
  runningLoop,
  serve,
  type ServeListener,
  type ServeOptions,
  shield,
  sleep,
  type Socket,
  Stream,
  type Task,
  TaskError,
  taskGroup,
  TimeoutError,
  until,
} from "../mod.ts";
import { removeSocketFile, run, tcp, tlsTransport, unix } from "./net_transports.ts";
import { needs, needsPrograms } from "./permissions.ts";
import { PieceSocket } from "./pieces.ts";
import { FakeSocket, platformTurn, simulate, type Simulation, simulation, text, thrownBy } from "./world.ts";

const ADDR = { transport: "tcp", hostname: "127.0.0.1", port: 1 } as const;

/** A listener whose clients are made by the test. */
class FakeListener extends FakeSocket implements ServeListener<PieceSocket> {
  readonly addr = ADDR;
  closed = false;
  /** How many connections were taken. */
  accepted = 0;
  #queue: (PieceSocket | Error)[] = [];

  /** A client has connected, or `accept` is going to fail. */
  push(...arrivals: (PieceSocket | Error)[]): void {
    this.#queue.push(...arrivals);
    this.ready = EVENT_READ;
  }

  accept(): [PieceSocket, Addr] {
    if (this.closed) throw new ClosedError("Cannot accept: the listener is closed");
    const next = this.#queue.shift();
    if (!next) throw new Error("accept was called though nobody has come");
    if (this.#queue.length === 0) this.ready = 0;
    if (next instanceof Error) throw next;
    this.accepted++;
    return [next, { ...ADDR, port: next.id }];
  }

  close(): void {
    this.closed = true;
    this.ready = EVENT_READ | EVENT_WRITE;
  }

  override toString(): string {
    return "a fake listener";
  }
}

function sockets(n: number): PieceSocket[] {
  return Array.from({ length: n }, () => new PieceSocket());
}

/** Lets so many turns pass in which no time does. */
function* turns(n: number): Coroutine {
  for (let i = 0; i < n; i++) yield* checkpoint();
}

function forever(): Coroutine {
  return sleep(1e9);
}

/** What a task fails with. */
function* failure(task: Task): Coroutine<unknown> {
  try {
    yield* task.join();
  } catch (error) {
    return error;
  }
}

/** What the tests hand around: a server under way. */
interface Running {
  listener: FakeListener;
  server: Task<void>;
  reports: { error: unknown; addr?: Addr | undefined }[];
  sim: Simulation;
}

/** Starts `serve` in a simulated world, then runs `body`. */
function serving<T>(
  handler: (sock: PieceSocket, addr: Addr) => Coroutine<unknown>,
  options: ServeOptions,
  body: (running: Running) => Coroutine<T>,
): Promise<T> {
  return simulate(function* (sim) {
    const listener = new FakeListener();
    const reports: Running["reports"] = [];
    const onError = (error: unknown, addr?: Addr) => void reports.push({ error, addr });
    const server = sim.loop.createTask(serve(listener, handler, { onError, ...options }));
    return yield* body({ listener, server, reports, sim });
  });
}

// ---- Serving -------------------------------------------------------------------------------------------------------

Deno.test("N12 each connection gets its handler, its address, and is closed when the handler ends", async () => {
  const seen: number[] = [];
  const handler = function* (sock: PieceSocket, addr: Addr): Coroutine {
    seen.push((addr as { port: number }).port);
    yield* new Stream(sock).write("hello");
  };
  await serving(handler, {}, function* ({ listener, server, reports }) {
    const socks = sockets(3);
    listener.push(...socks);
    yield* turns(20);
    assertEquals(seen, socks.map((sock) => sock.id));
    assert(socks.every((sock) => sock.closed && sock.output === "hello"));
    assertEquals(reports, []);
    assert(!server.done);
  });
});

Deno.test("N12 maxConnections holds: the next is accepted when one has ended, and none is lost", async () => {
  let open = 0;
  let most = 0;
  const handler = function* (): Coroutine {
    most = Math.max(most, ++open);
    yield* sleep(10);
    open--;
  };
  await serving(handler, { maxConnections: 3 }, function* ({ listener, sim }) {
    const socks = sockets(20);
    listener.push(...socks);
    yield* turns(50);
    assertEquals(listener.accepted, 3);
    yield* sleep(100);
    assertEquals([listener.accepted, most, open], [20, 3, 0]);
    assert(socks.every((sock) => sock.closed));
    assertEquals([...sim.loop.tasks].length, 3); // main, the server, its acceptor
  });
  await serving(forever, {}, function* ({ listener }) {
    listener.push(...sockets(1000));
    yield* sleep(1);
    assertEquals(listener.accepted, 1000); // By default there is no limit.
  });
});

Deno.test("N12 a place that is given up at any moment goes to the next, also at once", async () => {
  for (const most of [1, 2, 7]) {
    let served = 0;
    const handler = function* (): Coroutine {
      for (let i = served++ % 5; i > 0; i--) yield* checkpoint();
    };
    await serving(handler, { maxConnections: most }, function* ({ listener }) {
      listener.push(...sockets(50));
      yield* sleep(1);
      assertEquals([listener.accepted, served], [50, 50]);
    });
  }
});

Deno.test("N12 a server that is full hears when its listener is closed, and ends", needs({ net: true }), async () => {
  await run(function* (loop) {
    const listener = listen({ hostname: "127.0.0.1", port: 0 });
    const ended: string[] = [];
    const handler = function* (): Coroutine {
      try {
        yield* forever();
      } finally {
        ended.push("handler");
      }
    };
    const server = loop.createTask(serve(listener, handler, { maxConnections: 1, drainTimeout: 1 }));
    using client = yield* connect(listener.addr);
    while ([...loop.tasks].length < 4) yield* sleep(0); // main, the server, its acceptor, the handler
    listener.close();
    yield* server.join();
    assertEquals(ended, ["handler"]);
    assertEquals((yield* loop.sockRecv(client, 1)).length, 0);
  });
});

Deno.test("N12 a handler's error closes its connection, reaches onError with the address, and nothing else", async () => {
  const handler = function* (_sock: PieceSocket, addr: Addr): Coroutine {
    yield* sleep(1);
    if ((addr as { port: number }).port === bad.id) throw wrong;
    yield* forever();
  };
  const wrong = new Error("the handler failed");
  const bad = new PieceSocket();
  await serving(handler, {}, function* ({ listener, server, reports }) {
    const good = sockets(2);
    listener.push(good[0], bad, good[1]);
    yield* sleep(5);
    assert(bad.closed && good.every((sock) => !sock.closed));
    assertEquals(reports, [{ error: wrong, addr: { ...ADDR, port: bad.id } as Addr }]);
    assert(!server.done);
  });
});

Deno.test("N12 without onError a handler's error reaches the loop's own, with a task named after the client", async () => {
  const wrong = new Error("the handler failed");
  const socks = sockets(2);
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const server = loop.createTask(serve(listener, function* () {
      throw wrong;
    }));
    listener.push(...socks);
    yield* turns(10);
    assert(!server.done);
  }, { errors });
  assertEquals(errors.map(({ error, task }) => [error, task?.name]), [
    [wrong, `127.0.0.1:${socks[0].id}`],
    [wrong, `127.0.0.1:${socks[1].id}`],
  ]);
});

Deno.test("K8 an onError that throws is reported to the loop and does not stop the server", async () => {
  const errors: Simulation["errors"] = [];
  const hookError = new Error("the hook failed");
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const onError = () => {
      throw hookError;
    };
    const server = loop.createTask(serve(listener, function* () {
      throw new Error("the handler failed");
    }, { onError }));
    const last = new PieceSocket();
    listener.push(new PieceSocket(), emfile(), last);
    yield* sleep(200);
    assert(last.closed && !server.done);
  }, { errors });
  assertEquals(errors.map(({ error }) => error), [hookError, hookError, hookError]);
});

Deno.test("N12 a handler that is not a coroutine function is a clear error, a connection each", async () => {
  const handler = (() => Promise.reject(new Error("unheard"))) as unknown as () => Coroutine;
  await serving(handler, {}, function* ({ listener, reports }) {
    const sock = new PieceSocket();
    listener.push(sock);
    yield* turns(10);
    assert(sock.closed);
    assertInstanceOf(reports[0].error, TypeError);
    assertEquals(reports[0].error.message, "Cannot run a promise: wrap it, as in until(promise)");
  });
});

// ---- The end -------------------------------------------------------------------------------------------------------

Deno.test("N12 cancel stops accepting and lets handlers finish, then the server ends cancelled", async () => {
  const finished: number[] = [];
  const handler = function* (sock: PieceSocket): Coroutine {
    yield* sleep(30 + 10 * socks.indexOf(sock));
    finished.push(sock.id);
  };
  const socks = sockets(3);
  await serving(handler, { drainTimeout: 100 }, function* ({ listener, server, sim }) {
    listener.push(...socks);
    yield* sleep(10);
    server.cancel();
    yield* turns(5);
    assert(listener.closed, "the listener is closed at once");
    assert(!server.done && socks.every((sock) => !sock.closed));
    yield* server.wait();
    assertEquals(sim.loop.time(), 50);
    assertEquals(finished, socks.map((sock) => sock.id));
    assert(server.cancelled && socks.every((sock) => sock.closed));
  });
});

Deno.test("N12 handlers that go on longer than drainTimeout are cancelled, and their cleanup is awaited", async () => {
  const cleaned: number[] = [];
  const handler = function* (sock: PieceSocket): Coroutine {
    try {
      yield* forever();
    } finally {
      yield* shield(sleep(20));
      cleaned.push(sock.id);
    }
  };
  await serving(handler, { drainTimeout: 100 }, function* ({ listener, server, sim, reports }) {
    const socks = sockets(3);
    listener.push(...socks);
    yield* sleep(10);
    server.cancel();
    yield* server.wait();
    assertEquals(sim.loop.time(), 130);
    assertEquals(cleaned, socks.map((sock) => sock.id));
    assert(socks.every((sock) => sock.closed));
    assertEquals(reports, []);
    assertEquals([...sim.loop.tasks].length, 1);
  });
});

Deno.test("N12 drainTimeout 0 cancels at once; the default is a second", async () => {
  for (const [options, expected] of [[{ drainTimeout: 0 }, 0], [{}, 1000]] as const) {
    await serving(forever, options, function* ({ listener, server, sim }) {
      listener.push(new PieceSocket());
      yield* turns(5);
      server.cancel();
      yield* server.wait();
      assertEquals(sim.loop.time(), expected);
    });
  }
});

Deno.test("N12 cancelled while it waits for room, the server ends like any other", async () => {
  await serving(forever, { maxConnections: 1, drainTimeout: 5 }, function* ({ listener, server }) {
    const socks = sockets(2);
    listener.push(...socks);
    yield* turns(5);
    server.cancel();
    yield* server.wait();
    assert(server.cancelled && socks[0].closed);
    assertEquals(listener.accepted, 1);
  });
});

Deno.test("N12 a deadline around serve drains, then is a TimeoutError; a group around it is cancelled likewise", async () => {
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    listener.push(new PieceSocket());
    let error: unknown;
    try {
      yield* failAfter(100, serve(listener, forever, { drainTimeout: 50 }));
    } catch (caught) {
      error = caught;
    }
    assertInstanceOf(error, TimeoutError);
    assertEquals(loop.time(), 150);

    const other = new FakeListener();
    other.push(new PieceSocket());
    yield* taskGroup(function* (group) {
      group.createTask(serve(other, forever, { drainTimeout: 50 }));
      yield* sleep(1);
      group.cancel();
    });
    assertEquals(loop.time(), 201);
    assert(other.closed);
  });
});

Deno.test("N12 when the signal aborts the server drains and returns, and forgets the signal", async () => {
  const controller = new AbortController();
  let listeners = 0;
  const { signal } = controller;
  const add = signal.addEventListener.bind(signal) as (...args: any[]) => void;
  const remove = signal.removeEventListener.bind(signal) as (...args: any[]) => void;
  Object.assign(signal, {
    addEventListener: (...args: any[]) => (listeners++, add(...args)),
    removeEventListener: (...args: any[]) => (listeners--, remove(...args)),
  });
  await serving(() => sleep(50), { signal, drainTimeout: 100 }, function* ({ listener, server, sim }) {
    const sock = new PieceSocket();
    listener.push(sock);
    yield* sleep(10);
    assertEquals(listeners, 1);
    controller.abort();
    yield* server.join();
    assertEquals(sim.loop.time(), 50);
    assert(listener.closed && sock.closed);
    assertEquals(listeners, 0);
  });
});

Deno.test("N12 with a signal that has aborted already the server returns without a connection", async () => {
  const signal = AbortSignal.abort();
  let listening = false;
  await serving(forever, { signal, onListen: () => listening = true }, function* ({ listener, server }) {
    listener.push(new PieceSocket());
    yield* server.join();
    assert(listener.closed);
    assertEquals([listener.accepted, listening], [0, false]);
  });
});

Deno.test("N12 when its listener is closed the server drains and returns", async () => {
  await serving(() => sleep(50), {}, function* ({ listener, server, sim }) {
    listener.push(new PieceSocket());
    yield* sleep(10);
    listener.close();
    yield* server.join();
    assertEquals(sim.loop.time(), 50);
  });
});

Deno.test("N12 a listener that is closed already is a ClosedError at once, and one closed before the first step an end", async () => {
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const server = loop.createTask(serve(listener, forever));
    listener.close();
    yield* server.join();
    assertThrows(() => serve(listener, forever), ClosedError, "Cannot serve on a fake listener: it is closed");
  });
});

Deno.test("N12 serve on what is not a listener, or with what is no handler, is a TypeError that says what it takes", () => {
  for (const wrong of [8080, undefined, null, { port: 8080 }, Promise.reject(new Error("unheard"))] as never[]) {
    assertThrows(() => serve(wrong, forever), TypeError, "it takes a listener, as in serve(listen({ port }), handler)");
    assertThrows(() => serve(new FakeListener(), wrong), TypeError, "it takes serve(listener, function*");
  }
  const unheard = Promise.reject(new Error("unheard")) as never;
  assertThrows(() => serve(new FakeListener(), unheard), TypeError, "Cannot serve with a value of type Promise");
});

Deno.test("N12 N4 serve on a closed listener of the platform is a ClosedError", needs({ net: true }), () => {
  const listener = listen({ hostname: "127.0.0.1", port: 0 });
  listener.close();
  const error = assertThrows(() => serve(listener, forever), ClosedError);
  assertEquals(error.message, `Cannot serve on ${listener}: it is closed`);
});

/** A handler that swallows everything. */
function* stubborn(): Coroutine {
  for (;;) {
    try {
      yield* forever();
    } catch {
      // It goes on.
    }
  }
}

Deno.test("N12 a handler that the loop has given up leaves its place to the next, and its socket is closed", async () => {
  const errors: Simulation["errors"] = [];
  const first = new PieceSocket();
  const handler = (sock: PieceSocket) => sock === first ? moveOnAfter(10, stubborn()) : new Stream(sock).write("hello");
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const server = loop.createTask(serve(listener, handler, { maxConnections: 1 }));
    const second = new PieceSocket();
    listener.push(first, second);
    yield* sleep(5);
    assertEquals(listener.accepted, 1);
    yield* sleep(100);
    assert(first.closed && second.closed && !server.done);
    assertEquals(second.output, "hello");
    assertEquals([...loop.tasks].length, 3); // main, the server, its acceptor
    server.cancel();
    yield* server.wait();
  }, { errors });
  assertEquals(errors.length, 1);
});

Deno.test("N12 a handler that will not be cancelled is given up, which is told once, and its socket closed all the same", async () => {
  const errors: Simulation["errors"] = [];
  const told: unknown[] = [];
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const sock = new PieceSocket();
    listener.push(sock);
    const server = loop.createTask(
      serve(listener, stubborn, { drainTimeout: 5, onError: (error) => void told.push(error) }),
    );
    yield* sleep(1);
    server.cancel();
    yield* server.wait();
    assert(sock.closed);
  }, { errors });
  assertEquals([errors.length, told], [1, []]);
});

Deno.test("N12 onListen is told the address once, before anybody is accepted; its error ends the server", async () => {
  const told: Addr[] = [];
  await serving(forever, { onListen: (addr) => told.push(addr) }, function* ({ listener }) {
    listener.push(new PieceSocket());
    yield* turns(10);
    assertEquals(told, [ADDR]);
  });
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const wrong = new Error("the hook failed");
    const server = loop.createTask(serve(listener, forever, {
      onListen: () => {
        throw wrong;
      },
    }));
    assertEquals(yield* failure(server), wrong);
    assert(listener.closed);
  });
});

Deno.test("N12 what onListen throws is thrown, whatever it is, and the listener is closed", async () => {
  await simulate(function* ({ loop }) {
    for (const wrong of [new ClosedError("a queue is closed"), new BusyError("busy"), new TaskError("a task")]) {
      const listener = new FakeListener();
      const onListen = () => {
        throw wrong;
      };
      assertEquals(yield* failure(loop.createTask(serve(listener, forever, { onListen }))), wrong);
      assert(listener.closed);
    }
  });
});

Deno.test("N12 maxConnections holds, though a selector reports the listener as writable", async () => {
  let most = 0;
  let running = 0;
  function* handler(): Coroutine {
    most = Math.max(most, ++running);
    yield* turns(20); // A race takes some.
    running--;
  }
  await serving(handler, { maxConnections: 1 }, function* ({ listener }) {
    listener.push(...sockets(5));
    listener.ready |= EVENT_WRITE;
    yield* turns(200);
    assertEquals([most, listener.accepted], [1, 5]);
  });
});

Deno.test("N12 what an async hook rejects with after the run is reported, and leaves no task", async () => {
  const { loop, errors } = simulation();
  const stop = new AbortController();
  const late = Promise.withResolvers<void>();
  const onListen = () => (stop.abort(), late.promise);
  await loop.run(serve(new FakeListener(), forever, { onListen, signal: stop.signal }));
  const wrong = new Error("late");
  late.reject(wrong);
  await platformTurn();
  assertEquals([errors.map(({ error }) => error), [...loop.tasks]], [[wrong], []]);
});

Deno.test("N12 a handler's error is told though its socket throws as it is closed", async () => {
  const errors: Simulation["errors"] = [];
  const told: unknown[] = [];
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const handler = function* (sock: PieceSocket): Coroutine {
      sock.close = () => {
        throw "of close";
      };
      throw null; // It need not be an error.
    };
    loop.createTask(serve(listener, handler, { onError: (error) => told.push(error) }));
    listener.push(new PieceSocket());
    yield* sleep(1);
  }, { errors });
  assertEquals([told, errors.map(({ error }) => error)], [[null], ["of close"]]);
});

Deno.test("N12 a server that was cancelled, or its listener closed, before its first step does not say that it listens", async () => {
  await simulate(function* () {
    const told: Addr[] = [];
    const onListen = (addr: Addr) => told.push(addr);
    const listener = new FakeListener();
    const server = serve(listener, forever, { onListen });
    listener.close();
    yield* server;
    const other = new FakeListener();
    yield* cancelScope(function* (scope) {
      scope.cancel();
      yield* serve(other, forever, { onListen });
    });
    assertEquals([told, other.closed], [[], true]);
  });
});

Deno.test("N12 a server whose listener another has closed ends, though that is still draining", async () => {
  const handler = function* (): Coroutine {
    yield* sleep(10);
  };
  await serving(handler, {}, function* ({ listener, server }) {
    const late = serve(listener, handler);
    listener.push(...sockets(1));
    yield* turns(20);
    server.cancel();
    yield* turns(5);
    yield* late;
    assertEquals([listener.closed, server.done], [true, false]);
    yield* server.wait();
  });
});

Deno.test("N12 options of serve may be inherited", async () => {
  const stop = new AbortController();
  const told: Addr[] = [];
  const onListen = (addr: Addr) => {
    told.push(addr);
    stop.abort();
  };
  await simulate(() => {
    const options: ServeOptions = Object.create({ signal: stop.signal, onListen });
    return failAfter(10, serve(new FakeListener(), forever, options));
  });
  assertEquals(told, [ADDR]);
});

Deno.test("N12 N15 what async hooks reject with is reported", async () => {
  const errors: Simulation["errors"] = [];
  const wrong = { listen: new Error("onListen"), handler: new Error("handler"), accept: new Error("accept") };
  const told: unknown[] = [];
  const onError = (error: unknown) => {
    told.push(error);
    return Promise.reject(error);
  };
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    const handler = function* (): Coroutine {
      throw wrong.handler;
    };
    const onListen = () => Promise.reject(wrong.listen);
    loop.createTask(serve(listener, handler, { onListen, onError }));
    listener.push(new PieceSocket(), wrong.accept);
    yield* sleep(1);
  }, { errors });
  const all = Object.values(wrong).map((error) => error.message).sort();
  assertEquals(told.map((error) => (error as Error).message).sort(), all);
  assertEquals(errors.map(({ error }) => (error as Error).message).sort(), all);
});

Deno.test("N12 onError is told of a Cancelled from elsewhere, and C10 of what an error came in the wake of", async () => {
  const foreign = new Cancelled("of another loop");
  const handler = function* (sock: PieceSocket): Coroutine {
    if (sock.id === first.id) throw foreign;
    try {
      yield* forever();
    } finally {
      // deno-lint-ignore no-unsafe-finally -- that is what is tested
      throw new Error("the cleanup failed");
    }
  };
  const [first, second] = sockets(2);
  await serving(handler, { drainTimeout: 0 }, function* ({ listener, server, reports }) {
    listener.push(first, second);
    yield* sleep(1);
    server.cancel();
    yield* server.wait();
    const [cancelled, failed] = reports.map(({ error }) => error as Error);
    assertEquals([cancelled, failed.message, first.closed], [foreign, "the cleanup failed", true]);
    assertInstanceOf(failed.cause, Cancelled);
    assertEquals(failed.cause.reason, "the server is shutting down");
  });
});

// ---- Errors of accept ----------------------------------------------------------------------------------------------

function emfile(code = "EMFILE"): Error {
  return Object.assign(new Error("Too many open files (os error 24)"), { code });
}

Deno.test("N10 EMFILE in accept is reported, tried again after 100 ms, and nothing else is lost", async () => {
  const wrong = emfile();
  await serving(forever, {}, function* ({ listener, reports, sim }) {
    const socks = sockets(2);
    listener.push(socks[0], wrong, wrong, socks[1]);
    yield* turns(10);
    assertEquals(reports, [{ error: wrong, addr: undefined }]);
    assertEquals(listener.accepted, 1);
    yield* sleep(99.5);
    assertEquals(reports.length, 1);
    yield* sleep(100);
    assertEquals([reports.length, listener.accepted], [2, 1]);
    yield* sleep(1);
    assertEquals([reports.length, listener.accepted], [2, 2]);
    assertEquals(sim.loop.time(), 200.5);
    assert(socks.every((sock) => !sock.closed));
  });
});

Deno.test("N10 the report of a shortage of files needs no file itself: it shows no lines of the program", async () => {
  for (const code of ["EMFILE", "ENFILE", "ENOBUFS"]) {
    await serving(forever, {}, function* ({ listener, reports }) {
      listener.push(emfile(code));
      yield* sleep(1);
      const [first, ...lines] = (reports[0].error as Error).stack!.split("\n");
      assertEquals([first, lines.length > 0], ["Error: Too many open files (os error 24)", code === "ENOBUFS"]);
    });
  }
});

Deno.test("N10 N12 onError is given an address of the listener's kind, as onListen is", () => {
  const ports: (number | undefined)[] = [];
  const _serving = (listener: Listener<Deno.NetAddr>) =>
    serve(listener, (sock) => new Stream(sock).closeWrite(), {
      onListen: (addr) => ports.push(addr.port),
      onError: (_error, addr) => ports.push(addr?.port),
    });
});

Deno.test("N10 without onError an error of accept reaches the loop's own", async () => {
  const errors: Simulation["errors"] = [];
  const wrong = emfile();
  await simulate(function* ({ loop }) {
    const listener = new FakeListener();
    loop.createTask(serve(listener, forever));
    listener.push(wrong);
    yield* sleep(10);
  }, { errors });
  assertEquals(errors.map(({ error, task }) => [error, task?.name]), [[wrong, "serve"]]);
});

Deno.test("N10 cancel ends the back-off", async () => {
  await serving(forever, {}, function* ({ listener, server, reports, sim }) {
    listener.accept = () => {
      throw null; // A listener need not throw errors.
    };
    listener.ready = EVENT_READ;
    yield* sleep(10);
    assertEquals(reports, [{ error: null, addr: undefined }]);
    server.cancel();
    yield* server.wait();
    assertEquals(sim.loop.time(), 10);
  });
});

Deno.test("N10 closing the listener ends the back-off", async () => {
  await serving(forever, { drainTimeout: 5 }, function* ({ listener, server, reports, sim }) {
    const wrong = emfile();
    listener.push(wrong);
    yield* sleep(10);
    listener.close();
    yield* server.wait();
    assertEquals([reports, sim.loop.time()], [[{ error: wrong, addr: undefined }], 10]);
  });
});

Deno.test("N10 a client that was gone before it was accepted is no error at all", async () => {
  await serving(forever, {}, function* ({ listener, reports, sim }) {
    for (const name of ["ConnectionReset", "ConnectionAborted", "NotConnected"]) {
      listener.push(Object.assign(new Error("gone"), { name }));
    }
    listener.push(new PieceSocket());
    yield* turns(20);
    assertEquals([listener.accepted, reports.length, sim.loop.time()], [1, 0, 0]);
  });
});

Deno.test("N3 N12 a mistake of the program ends the server, which drains before it throws", async () => {
  await serving(() => sleep(50), {}, function* ({ listener, server, sim, reports }) {
    const sock = new PieceSocket();
    const wrong = new BusyError("Cannot wait to accept: another task is already waiting");
    listener.push(sock, wrong);
    assertEquals(yield* failure(server), wrong);
    assertEquals(sim.loop.time(), 50);
    assert(sock.closed);
    assertEquals(reports, []);
  });
});

Deno.test("N3 N12 a second server on a listener is refused, and the first goes on", async () => {
  const handler = function* (sock: PieceSocket): Coroutine {
    yield* new Stream(sock).write("hello");
  };
  await serving(handler, {}, function* ({ listener, server, sim }) {
    yield* turns(5);
    Object.assign(listener, { waitClosed: forever }); // Nobody waits for the end of what is another's.
    const onListen = () => {
      throw new Error("It does not listen");
    };
    assertInstanceOf(yield* failure(sim.loop.createTask(serve(listener, handler, { onListen }))), BusyError);
    assertEquals(sim.loop.time(), 0);
    const [sock] = sockets(1);
    listener.push(sock);
    yield* turns(20);
    assertEquals([listener.closed, server.done, sock.output], [false, false, "hello"]);
  });
});

Deno.test("N3 N12 so is a second server on the listener of one that is full, and does not wait to accept", async () => {
  const handler = function* (sock: PieceSocket): Coroutine {
    yield* new Stream(sock).readLine();
  };
  await serving(handler, { maxConnections: 1 }, function* ({ listener, server, sim }) {
    const [one, other] = sockets(2);
    listener.push(one, other);
    yield* turns(20);
    const error = yield* failure(sim.loop.createTask(serve(listener, handler)));
    assertEquals(
      String(error),
      "BusyError: Cannot serve on a fake listener: another server accepts from it",
    );
    one.end();
    yield* turns(20);
    assertEquals([listener.closed, server.done, one.closed, listener.accepted], [false, false, true, 2]);
    other.end();
  });
});

Deno.test("N3 N12 a server on a listener from which a task accepts is refused, and leaves it open", async () => {
  await simulate(function* ({ loop, world }) {
    const listener = new FakeListener();
    Object.assign(listener, { waitClosed: forever });
    const register = world.register;
    const busy = new BusyError("Cannot wait to accept from it: another task is already waiting");
    world.register = (fileobj, events, data) => {
      if (fileobj === listener) throw busy;
      return register.call(world, fileobj, events, data);
    };
    for (let i = 0; i < 2; i++) { // The first has left nothing behind.
      assertStrictEquals(yield* failure(loop.createTask(serve(listener, forever))), busy);
    }
    assertEquals([loop.time(), listener.closed], [0, false]);
  });
});

Deno.test("N12 hooks and signals that are none are refused where they are written", () => {
  const wrong = { signal: new AbortController(), onError: "print", onListen: {} };
  for (const [name, value] of Object.entries(wrong)) {
    assertThrows(() => serve(new FakeListener(), forever, { [name]: value as any }), TypeError, `the ${name} `);
  }
});

Deno.test("N12 maxConnections and drainTimeout out of range are refused where they are written", () => {
  const listener = new FakeListener();
  for (const maxConnections of [0, -1, NaN, 1.5]) {
    assertThrows(() => serve(listener, forever, { maxConnections }), RangeError, `${maxConnections}`);
  }
  for (const drainTimeout of [-1, NaN]) {
    assertThrows(() => serve(listener, forever, { drainTimeout }), RangeError, `${drainTimeout}`);
  }
});

Deno.test("N10 a mistake of the program in accept, or a listener gone from below it, ends the server", async () => {
  const kinds = [TypeError, RangeError, ReferenceError, Deno.errors.BadResource];
  for (const mistake of kinds.map((Kind) => new Kind("mine"))) {
    const listener = new FakeListener();
    listener.push(mistake);
    const error = await simulate(() => thrownBy(serve(listener, forever)));
    assertEquals([error === mistake, listener.closed], [true, true]);
  }
});

// ---- Real sockets --------------------------------------------------------------------------------------------------

function* echo(sock: ConstructorParameters<typeof Stream>[0]): Coroutine {
  const stream = new Stream(sock);
  for (let data; (data = yield* stream.read()).length > 0;) yield* stream.write(data);
}

Deno.test(
  "N12 serve over real sockets: every client is served, every socket closed",
  needs({ net: true }),
  async () => {
    const stop = new AbortController();
    using listener = listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = listener.addr;

    function* client(n: number): Coroutine<string> {
      using stream = new Stream(yield* connect({ hostname: "127.0.0.1", port }));
      yield* stream.write(`client ${n}`);
      yield* stream.closeWrite();
      return text(yield* stream.readAll());
    }

    await new Loop().run(taskGroup(function* (group) {
      const server = group.createTask(serve(listener, echo, { maxConnections: 4, signal: stop.signal }));
      const clients = Array.from({ length: 20 }, (_, n) => group.createTask(client(n)));
      for (const [n, task] of clients.entries()) assertEquals(yield* task.join(), `client ${n}`);
      stop.abort();
      yield* server.join();
      yield* sleep(1); // The port is free after a real turn.
    }));
    await assertRejects(() => Deno.connect({ hostname: "127.0.0.1", port }), Deno.errors.ConnectionRefused);
  },
);

for (const transport of [tcp, unix, tlsTransport]) {
  Deno.test(`N12 serve drains and closes all, over ${transport.name}`, needs(transport.needs), () =>
    run(function* () {
      const { listener, dial } = transport.open!();
      const stop = new AbortController();
      const reports: unknown[] = [];
      yield* taskGroup(function* (group) {
        const onError = (error: unknown) => reports.push(error);
        const options = { signal: stop.signal, drainTimeout: 2, onError };
        const server = group.createTask(serve(listener, echo, options));
        const streams = yield* all(Array.from({ length: 5 }, () => open(dial)));
        for (const [i, stream] of streams.entries()) {
          yield* stream.write(`hello ${i}\n`);
          assertEquals(yield* stream.readLine(), `hello ${i}`);
        }
        for (const { name } of runningLoop().tasks) assert(!name.includes("undefined"), name); // A path has no port.
        stop.abort(); // The handlers wait for more, and are cancelled when the time is up.
        for (const stream of streams) {
          assertEquals(yield* stream.readLine(), null);
          stream.close();
        }
        yield* server.join();
      });
      assertEquals(reports, []);
      removeSocketFile(listener);
    }));
}

function* open(dial: () => Coroutine<Socket>): Coroutine<Stream> {
  return new Stream(yield* dial());
}

Deno.test(
  "N11 N12 clients that stop in the middle of a TLS handshake hold up nobody",
  needs(tlsTransport.needs),
  () =>
    run(function* () {
      const { listener, dial } = tlsTransport.open!();
      const address = { hostname: "127.0.0.1", port: (listener.addr as Deno.NetAddr).port };
      const reports: unknown[] = [];
      yield* taskGroup(function* (group) {
        group.createTask(serve(listener, echo, { drainTimeout: 0, onError: (error) => reports.push(error) }));
        using _silent = yield* connect(address);
        using rude = yield* connect(address);
        yield* new Stream(rude).write("this is no handshake");
        using stream = yield* open(dial);
        yield* stream.write("hello\n");
        assertEquals(yield* stream.readLine(), "hello");
        yield* until(platformTurn());
        group.cancel();
      });
      assert(reports.length <= 1, `${reports}`); // The rude one, if it was noticed by now.
    }),
);

Deno.test("N12 N6 clients that reset concern nobody else", needs({ net: true }), async () => {
  const reports: unknown[] = [];
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  const address = { hostname: "127.0.0.1", port: listener.addr.port };

  await new Loop().run(taskGroup(function* (group) {
    group.createTask(serve(listener, echo, { onError: (error) => reports.push(error), drainTimeout: 0 }));
    using steady = new Stream(yield* connect(address));
    for (let i = 0; i < 10; i++) {
      const rude = yield* connect(address);
      yield* new Stream(rude).write("unread");
      yield* readWait(rude); // The echo is here: to close now is to reset.
      rude.abort();
      yield* steady.write("still there\n");
      assertEquals(yield* steady.readLine(), "still there");
    }
    group.cancel();
  }));
  assert(reports.every((error) => /Reset|BrokenPipe/.test(`${error}`)), `${reports}`);
});

Deno.test("N12 idle deadlines are one line for who writes the handler", needs({ net: true }), async () => {
  using listener = listen({ hostname: "127.0.0.1", port: 0 });
  const address = { hostname: "127.0.0.1", port: listener.addr.port };
  const handler = function* (sock: ConstructorParameters<typeof Stream>[0]): Coroutine {
    const stream = new Stream(sock);
    const line = yield* moveOnAfter(10, stream.readLine());
    yield* stream.write(line ?? "too slow");
  };
  await new Loop().run(taskGroup(function* (group) {
    group.createTask(serve(listener, handler));
    using silent = new Stream(yield* connect(address));
    assertEquals(yield* silent.readLine(), "too slow");
    group.cancel();
    yield* until(platformTurn());
  }));
});

Deno.test(
  "N12 serve returns when its address is free: the next server can have it at once",
  needs({ net: true }),
  async () => {
    let listener = listen({ hostname: "127.0.0.1", port: 0 });
    const { port } = listener.addr;
    await new Loop().run((function* (): Coroutine {
      for (let i = 0; i < 20; i++) {
        const server = runningLoop().createTask(serve(listener, (sock) => new Stream(sock).closeWrite()));
        const client = new Stream(yield* connect({ port }));
        assertEquals((yield* client.readAll()).length, 0);
        client.close();
        server.cancel();
        yield* server.wait();
        listener = listen({ hostname: "127.0.0.1", port });
      }
    })());
    listener.close();
  },
);

Deno.test("N12 a handler that waits for something else sees its client leave by a race with readWait", async () => {
  const ended: number[] = [];
  const handler = function* (sock: PieceSocket): Coroutine {
    yield* race([forever(), readWait(sock)]);
    ended.push(sock.id);
  };
  await serving(handler, {}, function* ({ listener, sim }) {
    const [stays, leaves] = sockets(2);
    listener.push(stays, leaves);
    yield* turns(10);
    leaves.end();
    yield* turns(10);
    assertEquals([ended, stays.closed, leaves.closed, sim.loop.time()], [[leaves.id], false, true, 0]);
  });
});

Deno.test("N12 serve waits for its listener's address though it was cancelled", async () => {
  await serving(forever, {}, function* ({ listener, server, sim }) {
    Object.assign(listener, { waitClosed: () => sleep(7) });
    yield* turns(5);
    server.cancel();
    yield* server.wait();
    assertEquals([server.cancelled, sim.loop.time()], [true, 7]);
  });
});

Deno.test("N12 a server drains though its listener throws as it is closed", async () => {
  await serving(forever, { drainTimeout: 5 }, function* ({ listener, server, sim }) {
    const wrong = new Error("of close");
    const [sock] = sockets(1);
    listener.push(sock, new TypeError("mine"));
    listener.close = () => {
      throw wrong;
    };
    assertEquals([yield* failure(server), sock.closed, [...sim.loop.tasks].length], [wrong, true, 1]);
  });
});

Deno.test("N12 a handler between two requests hears of the signal by a scope, and the server is drained at once", async () => {
  const stop = new AbortController();
  const { signal } = stop;
  function* handler(sock: PieceSocket): Coroutine {
    const stream = new Stream(sock);
    while (yield* cancelScope(() => stream.readLine(), { signal }));
  }
  await serving(handler, { signal, drainTimeout: 60_000 }, function* ({ listener, server, sim }) {
    const [client] = sockets(1);
    listener.push(client);
    yield* turns(10);
    assert(!client.closed);
    stop.abort();
    yield* server.join();
    assert(client.closed);
    assertEquals(sim.loop.time(), 0);
  });
});

Deno.test(
  "N10 a server that has no file left to open says so, lives on, and serves who waited",
  needsPrograms(["sh"]),
  async () => {
    // The server may open sixty files, about twenty of which the platform takes for itself.
    const script = 'ulimit -n 60; exec "$0" run --no-prompt --allow-net "$1" 0';
    const path = new URL("../examples/echo_stream.ts", import.meta.url).pathname;
    const command = new Deno.Command("sh", {
      args: ["-c", script, Deno.execPath(), path],
      env: { NO_COLOR: "1" },
      stdout: "piped",
      stderr: "piped",
    });
    await using child = command.spawn();
    const [out, err] = [child.stdout, child.stderr].map((part) =>
      part.pipeThrough(new TextDecoderStream()).getReader()
    );
    const port = Number((await readUntil(out, /listening on .*:(\d+)\n/))[1]);
    const clients = await Promise.all(Array.from({ length: 60 }, () => Deno.connect({ hostname: "127.0.0.1", port })));
    await readUntil(err, /Error in task \d+ "serve".*EMFILE/);
    await echoes(clients[0]); // Those who are in are served on.
    for (const client of clients.slice(0, 59)) client.close();
    await echoes(clients[59]); // And so is, when there is room, the one who waited outside.
    clients[59].close();
    child.kill("SIGTERM");
    await Promise.all([readUntil(out, null), readUntil(err, null), child.status]);
  },
);

/** Reads until `wanted` has been printed; null for the end. */
async function readUntil(reader: ReadableStreamDefaultReader<string>, wanted: RegExp | null): Promise<string[]> {
  for (let text = "";;) {
    const { value, done } = await reader.read();
    if (done && wanted) throw new Error(`The program ended without printing ${wanted}. It printed: ${text}`);
    text += value ?? "";
    const found = wanted?.exec(text);
    if (done || found) return found ?? [];
  }
}

async function echoes(client: Deno.Conn): Promise<void> {
  await client.write(new TextEncoder().encode("x"));
  const buffer = new Uint8Array(10);
  assertEquals(text(buffer.subarray(0, (await client.read(buffer)) ?? 0)), "Got: x");
}
