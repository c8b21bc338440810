/**
 * process_test.ts: signals and workers.
 *
 * Signals are sent by the program to itself, as SIGHUP and SIGUSR2, which nobody else here uses. (Not as SIGUSR1: at that
 * Deno 2.9.6 may start its inspector.) Workers are real threads; that one has begun is known by what it writes to shared
 * memory, not by waiting.
 */
import { assert, assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Worker } from "node:worker_threads";
import {
  all,
  Cancelled,
  checkpoint,
  ClosedError,
  connect,
  type Coroutine,
  DeadlockError,
  failAfter,
  listen,
  Loop,
  moveOnAfter,
  type Op,
  park,
  ParkingLot,
  runInWorker,
  signal,
  SignalQueue,
  sleep,
  type Task,
  TaskError,
  until,
  WorkerPool,
} from "../mod.ts";
import { runWithGc } from "./heap.ts";
import { needs } from "./permissions.ts";
import { platformTurn, simulation, thrownBy } from "./world.ts";

const SIGNALS = needs({ run: true });

function send(name: Deno.Signal): void {
  Deno.kill(Deno.pid, name);
}

function run<T>(main: (loop: Loop) => Coroutine<T>): Promise<T> {
  const loop = new Loop({ onError: (error) => unexpected.push(error) });
  return loop.run(main(loop));
}

/** What reached `onError` of a loop or a pool. */
let unexpected: unknown[] = [];

function test(name: string, options: { ignore?: boolean }, body: () => Promise<void>): void {
  Deno.test(name, options, async () => {
    unexpected = [];
    await body();
    assertEquals(unexpected, []);
    await platformTurn(); // What listened to signals has ended once Deno has looked.
  });
}

/** Waits, for as many turns as it takes, until `holds()`. */
function* untilHolds(holds: () => boolean): Coroutine {
  while (!holds()) yield* until(platformTurn());
}

test("K15 a trace tells what a wait for the platform is for", needs({ net: true, run: true }), async () => {
  const told: string[] = [];
  const loop = new Loop({ trace: ({ args: [source] }) => void (source?.name && told.push(source.name)) });
  await loop.run(function* (): Coroutine {
    using listener = listen({ hostname: "127.0.0.1", port: 0 });
    (yield* connect(listener.addr)).close();
    yield* runInWorker(() => {});
    loop.createTask(signal("SIGHUP"));
    yield* untilHolds(() => told.includes("signal"));
  }());
  assertEquals(told, ["connect", "runInWorker", "signal"]);
});

// ---- Signals -------------------------------------------------------------------------------------------------------

test("P1 signal waits for one delivery and returns its name", SIGNALS, async () => {
  const name = await run(function* (loop) {
    const task = loop.createTask(signal("SIGHUP"));
    yield* sleep(0);
    assert(!task.done);
    send("SIGHUP");
    return yield* task.join();
  });
  assertEquals(name, "SIGHUP");
});

test("P1 signal waits for whichever of several comes first", SIGNALS, async () => {
  const name = await run(function* (loop) {
    const task = loop.createTask(signal("SIGHUP", "SIGUSR2"));
    yield* sleep(0);
    send("SIGUSR2");
    return yield* task.join();
  });
  assertEquals(name, "SIGUSR2");
});

test("P1 signal takes its listener off, delivered, cancelled or timed out", SIGNALS, async () => {
  using counter = new ListenerCounter();
  await run(function* (loop) {
    const delivered = loop.createTask(signal("SIGHUP", "SIGUSR2"));
    const cancelled = loop.createTask(signal("SIGHUP"));
    yield* sleep(0);
    assertEquals(counter.count, 3);
    cancelled.cancel();
    yield* cancelled.wait();
    assertEquals(counter.count, 2);
    send("SIGHUP");
    yield* delivered.join();
    assertEquals(counter.count, 0);
    assertEquals(yield* moveOnAfter(1, signal("SIGHUP")), undefined);
    assertEquals(counter.count, 0);
  });
});

test("P1 signal listens from its first step, not from its making", SIGNALS, async () => {
  using counter = new ListenerCounter();
  signal("SIGHUP");
  assertEquals(counter.count, 0);
  await Promise.resolve();
});

test("P1 one delivery reaches every task that waits for it", SIGNALS, async () => {
  const names = await run(function* (loop) {
    const tasks = [loop.createTask(signal("SIGHUP")), loop.createTask(signal("SIGHUP"))];
    yield* sleep(0);
    send("SIGHUP");
    return [yield* tasks[0].join(), yield* tasks[1].join()];
  });
  assertEquals(names, ["SIGHUP", "SIGHUP"]);
});

Deno.test("P1 signal refuses what is no signal, where it is written", () => {
  assertThrows(() => signal(), TypeError, "Cannot wait for no signal");
  assertThrows(() => signal(2 as any), TypeError, "Cannot wait for signal 2");
  assertThrows(() => signal("SIGHUP", 3 as any), TypeError, "Cannot wait for signal 3");
});

Deno.test("P1 signal throws at its first step if the platform knows no such signal", async () => {
  await assertRejects(() => new Loop().run(signal("SIGNONE" as any)), TypeError);
});

Deno.test("P1 a SignalQueue that cannot listen to one of its signals listens to none", () => {
  using counter = new ListenerCounter();
  assertThrows(() => new SignalQueue("SIGHUP", "SIGNONE" as any), TypeError);
  assertThrows(() => new SignalQueue(), TypeError, "name one");
  assertEquals(counter.count, 0);
});

Deno.test("P1 signal says so where there is no Deno", () => {
  const property = Object.getOwnPropertyDescriptor(globalThis, "Deno")!;
  try {
    delete (globalThis as any).Deno;
    assertThrows(() => signal("SIGINT", "SIGHUP"), Error, "Cannot wait for SIGINT, SIGHUP: this platform is not Deno");
  } finally {
    Object.defineProperty(globalThis, "Deno", property);
  }
});

test("P2 a SignalQueue keeps what comes between two waits, in order", SIGNALS, async () => {
  const names = await run(function* () {
    using signals = new SignalQueue("SIGHUP", "SIGUSR2");
    for (const name of ["SIGHUP", "SIGUSR2", "SIGHUP"] as const) {
      const size = signals.size;
      send(name);
      yield* untilHolds(() => signals.size > size);
    }
    return [yield* signals.get(), yield* signals.get(), yield* signals.get()];
  });
  assertEquals(names, ["SIGHUP", "SIGUSR2", "SIGHUP"]);
});

test("P2 a cancelled get leaves the signal to the next, and getters are served in order", SIGNALS, async () => {
  await run(function* (loop) {
    using signals = new SignalQueue("SIGHUP", "SIGUSR2");
    const [first, second, third] = [0, 1, 2].map(() => loop.createTask(signals.get()));
    while (first.op?.[0] !== "until") yield* checkpoint(); // Before, it might still get the signal.
    first.cancel();
    send("SIGHUP");
    assertEquals(yield* second.join(), "SIGHUP");
    assert(!third.done);
    send("SIGUSR2");
    assertEquals(yield* third.join(), "SIGUSR2");
  });
});

test("P2 closing a SignalQueue ends the waits; what has come can still be taken", SIGNALS, async () => {
  using counter = new ListenerCounter();
  await run(function* (loop) {
    const signals = new SignalQueue("SIGHUP");
    const waiting = loop.createTask(thrownBy(signals.get()));
    yield* sleep(0);
    signals.close();
    signals.close();
    assertEquals(counter.count, 0);
    assert((yield* waiting.join()) instanceof ClosedError);
    const other = new SignalQueue("SIGHUP");
    send("SIGHUP");
    yield* untilHolds(() => other.size === 1);
    other.close();
    assertEquals(yield* other.get(), "SIGHUP");
    assert((yield* thrownBy(other.get())) instanceof ClosedError);
  });
});

test("P2 waits for a signal that are cancelled leave nothing behind", needs({ run: true }), async () => {
  const program = `
    const loop = new Loop();
    await loop.run(function* () {
      using signals = new SignalQueue("SIGHUP");
      const heap = [];
      for (let i = 0; i <= 5000; i++) {
        if (i % 2500 === 0) heap.push(used());
        const task = loop.createTask(signals.get());
        task.cancel();
        yield* task.wait();
        const later = loop.createTask(signals.get());
        for (let n = 0; n < 4; n++) yield* checkpoint();
        later.cancel();
        yield* later.wait();
      }
      console.log(heap[2] - heap[1] < 1e6 ? "flat" : heap);
    }());`;
  assertEquals(await runWithGc("checkpoint, Loop, SignalQueue", program), "flat\n");
});

test("P2 closing a SignalQueue wakes who waits for the next arrival", SIGNALS, async () => {
  await run(function* (loop) {
    const signals = new SignalQueue("SIGHUP");
    const waiting = loop.createTask(thrownBy(signals.get()));
    while (waiting.op?.[0] !== "until") yield* checkpoint();
    signals.close();
    assert((yield* waiting.join()) instanceof ClosedError);
  });
});

test("P2 a signal that came before the close goes to who waited for it", SIGNALS, async () => {
  await run(function* (loop) {
    using signals = new SignalQueue("SIGHUP");
    const waiting = loop.createTask(signals.get());
    while (waiting.op?.[0] !== "until") yield* checkpoint();
    const close = () => signals.close(); // Deno calls it right after the queue's own listener.
    Deno.addSignalListener("SIGHUP", close);
    send("SIGHUP");
    assertEquals(yield* waiting.join(), "SIGHUP");
    Deno.removeSignalListener("SIGHUP", close);
  });
});

test("P2 a wait for a signal sleeps until that comes, though others came before", SIGNALS, async () => {
  let waits = 0;
  const loop = new Loop({ trace: ({ args: [source] }) => void (source?.name === "signal" && waits++) });
  await loop.run(function* (): Coroutine {
    using signals = new SignalQueue("SIGHUP");
    for (const expected of [1, 2]) {
      const waiting = loop.createTask(signals.get());
      for (let n = 0; n < 5; n++) yield* until(platformTurn());
      assertEquals(waits, expected);
      send("SIGHUP");
      yield* waiting.join();
    }
  }());
});

test("P2 a signal that is named twice is one, and a flood is dropped beyond 1024", SIGNALS, async () => {
  const { addSignalListener, removeSignalListener } = Deno;
  const listeners: (() => void)[] = [];
  Deno.addSignalListener = (_name, listener) => void listeners.push(listener);
  Deno.removeSignalListener = () => {};
  try {
    using signals = new SignalQueue("SIGHUP", "SIGHUP");
    assertEquals(listeners.length, 1);
    for (let i = 0; i < 1100; i++) listeners[0]();
    assertEquals(signals.size, 1024);
  } finally {
    Object.assign(Deno, { addSignalListener, removeSignalListener });
  }
  await Promise.resolve();
});

test("P2 a queue that is closed when its loop was stopped does not hold the program", SIGNALS, async () => {
  const loop = new Loop();
  const signals = new SignalQueue("SIGHUP");
  const waiting = loop.createTask(signals.get());
  loop.createTask((function* (): Coroutine {
    yield* untilHolds(() => waiting.op?.[0] === "until");
    loop.stop();
  })());
  await loop.runForever();
  signals.close(); // An interval left behind is a leak that the sanitizers tell of.
});

// ---- Workers -------------------------------------------------------------------------------------------------------

test("P3 runInWorker returns what the function returns, or what its promise resolves to", {}, async () => {
  const add = (a: number, b: number) => a + b;
  // deno-lint-ignore require-await
  const later = async (a: Map<string, number>) => new Map([...a, ["two", 2]]);
  const two: readonly [number, number] = [2, 3]; // Nobody changes the arguments, so they may be such.
  const results = await run(() => all([runInWorker(add, two), runInWorker(later, [new Map([["one", 1]])])]));
  assertEquals(results, [5, new Map([["one", 1], ["two", 2]])]);
});

test("P3 a function finds the globals of a thread, self included", {}, async () => {
  const look = () => [typeof self, self === globalThis, typeof structuredClone];
  assertEquals(await run(() => runInWorker(look)), ["object", true, "function"]);
});

test("P3 runInWorker calls what a module exports", needs({ read: true }), async () => {
  const url = new URL("./process_jobs.ts", import.meta.url);
  await run(function* () {
    using pool = new WorkerPool(1);
    assertEquals(yield* pool.run<number>(url, [20]), 40);
    assertEquals(yield* pool.run<number>(url.href, [20], { exportName: "half" }), 10);
    const bytes = new Uint8Array(3);
    yield* pool.run(url, [20, bytes], { transfer: [bytes.buffer] });
    assertEquals(bytes.length, 0);
    const error = yield* thrownBy(pool.run(url, [], { exportName: "none" }));
    assert(error instanceof TypeError && /exports no function "none"/.test(error.message), String(error));
  });
});

test("P3 the loop goes on while a worker computes", {}, async () => {
  const turns = await run(function* (loop) {
    const gate = new Int32Array(new SharedArrayBuffer(4));
    const task = loop.createTask(runInWorker((gate: Int32Array) => {
      while (Atomics.load(gate, 0) < 10);
    }, [gate]));
    for (let i = 0; i < 10; i++) {
      yield* sleep(0);
      Atomics.add(gate, 0, 1);
    }
    yield* task.join();
    return gate[0];
  });
  assertEquals(turns, 10);
});

test("P3 a worker that has returned is ended", {}, async () => {
  using terminated = new TerminateCounter();
  await run(() => runInWorker(() => 1));
  assertEquals(terminated.count, 1);
});

test("P4 an error thrown in the worker arrives with its class, name, message, stack and cause", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(1);
    const range = yield* thrownBy(pool.run(function broken() {
      throw new RangeError("too far", { cause: new TypeError("wrong turn") });
    }));
    assert(range instanceof RangeError);
    assertEquals([range.name, range.message], ["RangeError", "too far"]);
    assert(/broken/.test(range.stack!), range.stack);
    assert(range.cause instanceof TypeError);
    assertEquals(range.cause.message, "wrong turn");
    const own = yield* thrownBy(pool.run(() => {
      class TaxError extends Error {
        override name = "TaxError";
        errors = ["no AggregateError"];
      }
      throw new TaxError("too high");
    }));
    assertEquals([own.constructor, own.name, own.message, "cause" in own], [Error, "TaxError", "too high", false]);
    own.name = own.stack = "can be changed, as any error's";
    delete own.name;
    for (const Class of [EvalError, RangeError, ReferenceError, SyntaxError, TypeError, URIError]) {
      const reject = (name: string) => Promise.reject(new (globalThis as any)[name]());
      assertEquals((yield* thrownBy(pool.run(reject, [Class.name]))).constructor, Class);
    }
    const symbols = yield* thrownBy(pool.run(() => {
      throw Object.assign(new Error(), { name: Symbol("name"), message: Symbol("message") });
    }));
    assertEquals([symbols.name, symbols.message], ["Symbol(name)", "Symbol(message)"]);
    for (const name of ["constructor", "AggregateError"]) { // names that are no class of errors, or of another shape
      const odd = yield* thrownBy(pool.run((name: string) => {
        throw Object.assign(new Error("odd"), { name });
      }, [name]));
      assert(odd instanceof Error);
      assertEquals([odd.name, odd.message], [name, "odd"]);
    }
    for (const other of ["a string", 0]) {
      assertEquals(yield* thrownBy(pool.run((other) => Promise.reject(other), [other])), other);
    }
    for (const cause of ["why", { code: 5 }, null]) {
      const because = yield* thrownBy(
        pool.run((cause) => Promise.reject(new Error("for a reason", { cause })), [cause]),
      );
      assertEquals((because as Error).cause, cause);
    }
    const { cause: unspeakable } = yield* thrownBy(pool.run(() => {
      throw new Error("a reason", { cause: new Error("no reason", { cause: () => {} }) });
    }));
    assertEquals([unspeakable.message, unspeakable.cause], ["no reason", undefined]);
    let last: any = yield* thrownBy(pool.run(() => {
      let error = new Error("0");
      for (let i = 1; i < 100; i++) error = new Error(String(i), { cause: error });
      throw error;
    }));
    while (last.cause) last = last.cause;
    assertEquals(last.message, "35"); // 64 errors arrive with their causes, and the cause of the last.
    assertEquals([pool.idle, pool.busy], [1, 0]);
  });
});

test("P4 an AggregateError arrives with its errors", {}, async () => {
  await run(function* () {
    const error = yield* thrownBy(runInWorker(() => {
      const inner = new AggregateError([new TypeError("wrong turn"), "a string", () => {}], "inner", { cause: "why" });
      return Promise.any([Promise.reject(new RangeError("too far")), Promise.reject(inner)]);
    }));
    assert(error instanceof AggregateError);
    const [range, inner] = error.errors;
    assert(range instanceof RangeError && inner instanceof AggregateError);
    assertEquals([inner.name, inner.message, inner.cause], ["AggregateError", "inner", "why"]);
    assert(inner.errors[0] instanceof TypeError);
    assertEquals(inner.errors.slice(1), ["a string", undefined]); // A function cannot be copied.
    const circle = yield* thrownBy(runInWorker(() => {
      const errors: Error[] = Array.from({ length: 40 }, (_, i) => new Error(`error ${i}`));
      const all = new AggregateError(errors, "all of them");
      for (const error of errors) error.cause = all;
      throw all;
    }));
    assert(circle instanceof AggregateError && circle.errors.length === 40);
    assertEquals(circle.errors[39].cause.message, "all of them");
    const broken = yield* thrownBy(runInWorker(() => {
      throw Object.defineProperty(new AggregateError([], "broken"), "errors", {
        get: () => {
          throw new Error("not to be looked at");
        },
      });
    }));
    assertEquals((broken as Error).message, "broken");
    const odd = yield* thrownBy(runInWorker(() => {
      throw Object.assign(new AggregateError([], "odd"), { errors: "none" });
    }));
    assertEquals(odd.message, "odd");
  });
});

test("P3 what a function posts by itself is not taken for a result, in its run or in the next", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(1);
    const first = yield* pool.run(async (n) => {
      for (const message of [null, "text", { key: "1", value: 99 }, { thrown: { other: 99 } }]) {
        (globalThis as any).postMessage(message);
      }
      setTimeout(() => (globalThis as any).postMessage({ value: 98 }));
      await new Promise((resolve) => setTimeout(resolve));
      return n;
    }, [1]);
    const second = yield* pool.run(async (n) => {
      await new Promise((resolve) => setTimeout(resolve));
      return n;
    }, [2]);
    assertEquals([first, second, pool.idle], [1, 2, 1]);
  });
});

test("P4 what cannot be copied is an error of the run, and the worker serves on", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(1);
    const there = yield* thrownBy(pool.run((_f: () => void) => 1, [() => {}]));
    assertEquals((there as Error).name, "DataCloneError");
    const back = yield* thrownBy(pool.run(() => () => {}));
    assertEquals((back as Error).name, "DataCloneError");
    const thrown = yield* thrownBy(pool.run(() => {
      throw () => {};
    }));
    assertEquals((thrown as Error).name, "DataCloneError");
    assertEquals(pool.idle, 1);
    assertEquals(yield* pool.run(() => 1), 1);
  });
});

test("P4 a function that does not stand on its own is an error of the run", {}, async () => {
  const outside = 1;
  await run(function* () {
    const closure = yield* thrownBy(runInWorker(() => outside));
    assert(closure instanceof ReferenceError, String(closure));
    const method = yield* thrownBy(runInWorker({ method() {} }.method));
    assert(method instanceof TypeError && /stand on its own/.test(method.message), String(method));
    assert(method.cause instanceof SyntaxError);
  });
});

test("P4 an error nobody caught in the worker fails the run; the program and the pool live on", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(1, { onError: (error) => unexpected.push(error) });
    const timer = yield* thrownBy(pool.run(() => {
      setTimeout(() => {
        const own = Object.assign(new Error("what it comes from"), { name: "OwnError" });
        throw new RangeError("from a timer", { cause: own });
      });
      return new Promise<void>(() => {});
    }));
    assert(timer instanceof RangeError);
    assertEquals(timer.message, "from a timer");
    assertEquals((timer.cause as Error).name, "OwnError");
    const promise = yield* thrownBy(pool.run(() => {
      Promise.reject(new Error("from a promise"));
      return new Promise<void>(() => {});
    }));
    assertEquals((promise as Error).message, "from a promise");
    const uncopied = yield* thrownBy(pool.run(() => {
      Promise.reject(() => {});
      return new Promise<void>(() => {});
    }));
    assertEquals([uncopied.name, pool.idle], ["DataCloneError", 0]);
    const end = yield* thrownBy(pool.run(() => Deno.exit(3)));
    assertEquals((end as Error).message, "Cannot get a result from the worker: it has ended, with code 3");
    assertEquals(pool.idle, 0);
    assertEquals(yield* pool.run(() => 1), 1);
  });
});

test("P4 an error that the worker cannot tell of fails the run too", needs({ run: true }), async () => {
  const program = `
    function broken() {
      throw Object.defineProperty(new Error(), "message", { get() { throw this; } });
    }
    await new Loop().run(runInWorker(broken)).catch((error) => console.log(error.message));`;
  assertEquals(await runWithGc("Loop, runInWorker", program), "Uncaught Error\n");
});

test("P4 undefined that nobody caught in the worker fails the run too", {}, async () => {
  const thrown = await run(function* (loop) {
    const task = loop.createTask(runInWorker(async () => {
      Promise.reject();
      await new Promise(() => {});
    }));
    try {
      yield* task.join();
    } catch (error) {
      return error;
    }
  });
  assert(thrown instanceof TaskError);
});

test("P4 an error in an idle worker is reported, and the worker replaced", {}, async () => {
  using terminated = new TerminateCounter();
  await run(function* () {
    const errors: unknown[] = [];
    using pool = new WorkerPool(1, { onError: (error) => errors.push(error) });
    yield* pool.run(() => {
      setTimeout(() => {
        throw new Error("too late");
      });
    });
    yield* untilHolds(() => errors.length === 1);
    assertEquals((errors[0] as Error).message, "too late");
    assertEquals([pool.idle, terminated.count], [0, 1]);
    assertEquals(yield* pool.run(() => 1), 1);
  });
});

test("P4 an error in an idle worker costs the pool no other", {}, async () => {
  await run(function* (loop) {
    const errors: unknown[] = [];
    using pool = new WorkerPool(2, { onError: (error) => errors.push(error) });
    const gate = new Int32Array(new SharedArrayBuffer(12));
    const other = loop.createTask(pool.run(count, [gate]));
    yield* pool.run((gate: Int32Array) => {
      setInterval(() => {
        if (Atomics.load(gate, 2) > 0) throw new Error("too late");
      });
    }, [gate]);
    Atomics.store(gate, 1, 1);
    yield* other.join();
    Atomics.store(gate, 2, 1);
    yield* untilHolds(() => errors.length === 1);
    assertEquals([pool.idle, yield* pool.run(() => 1)], [1, 1]);
  });
});

test("P4 an error after a run that its stopped loop has not ended costs the pool no idle worker", {}, async () => {
  const errors: unknown[] = [];
  using pool = new WorkerPool(2, { onError: (error) => errors.push(error) });
  const gate = new Int32Array(new SharedArrayBuffer(8));
  const stopped = new Loop();
  const work = (gate: Int32Array) => {
    Atomics.store(gate, 0, 1);
    while (Atomics.load(gate, 1) === 0);
    setTimeout(() => {
      throw new Error("too late");
    });
  };
  stopped.createTask(pool.run(work, [gate]));
  stopped.createTask(function* (): Coroutine {
    yield* pool.run(() => 1);
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
    stopped.stop();
  }());
  await stopped.runForever();
  Atomics.store(gate, 1, 1);
  while (errors.length === 0) await platformTurn();
  assertEquals([pool.idle, pool.busy], [1, 1]);
  await stopped.run(checkpoint()); // ends what it has left
});

test("P4 an error that comes with the result is reported, and the result returned", {}, async () => {
  await run(function* () {
    const errors: unknown[] = [];
    using pool = new WorkerPool(1, { onError: (error) => errors.push(error) });
    const result = yield* pool.run(() => {
      Promise.reject(new Error("nobody caught it"));
      return 1;
    });
    assertEquals(result, 1);
    yield* untilHolds(() => errors.length === 1);
    assertEquals((errors[0] as Error).message, "nobody caught it");
    assertEquals([pool.idle, pool.busy], [0, 0]);
  });
});

test("P5 cancel ends the worker", {}, async () => {
  using terminated = new TerminateCounter();
  await run(function* (loop) {
    const gate = new Int32Array(new SharedArrayBuffer(8));
    const task = loop.createTask(runInWorker((gate: Int32Array) => {
      setInterval(() => Atomics.add(gate, 0, 1));
      return new Promise<void>(() => {});
    }, [gate]));
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
    task.cancel("enough");
    const error = yield* thrownBy(task.join());
    assert(error instanceof TaskError && error.cause instanceof Cancelled);
    assertEquals(error.cause.reason, "enough");
    assertEquals(terminated.count, 1);
    for (let last = -1; last !== Atomics.load(gate, 0);) {
      last = Atomics.load(gate, 0);
      yield* sleep(20);
    }
  });
});

test("P5 cancel ends a worker that never gives up control, and the wait for it", {}, async () => {
  using terminated = new TerminateCounter();
  await run(function* (loop) {
    const gate = new Int32Array(new SharedArrayBuffer(8));
    const task = loop.createTask(runInWorker(count, [gate]));
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
    task.cancel();
    yield* task.wait();
    assertEquals([task.cancelled, terminated.count], [true, 1]);
    Atomics.store(gate, 1, 1); // Deno may take seconds to stop the thread.
  });
});

test("P5 a cancelled run waits no longer than a second for its worker to end", {}, async () => {
  using terminated = new TerminateCounter(() => new Promise(() => {}));
  const { loop, world } = simulation();
  await loop.run(function* (): Coroutine {
    const gate = new Int32Array(new SharedArrayBuffer(8));
    const task = loop.createTask(runInWorker(count, [gate]));
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
    task.cancel();
    yield* task.wait();
    assertEquals([world.now(), terminated.count], [1000, 1]);
    Atomics.store(gate, 1, 1);
  }());
});

test("P5 cancel before the worker has started leaves none behind", {}, async () => {
  await run(function* (loop) {
    using pool = new WorkerPool(1);
    for (let turns = 0; turns < 4; turns++) {
      const task = loop.createTask(pool.run(() => 1));
      for (let i = 0; i < turns; i++) yield* sleep(0);
      task.cancel();
      yield* task.wait();
      assertEquals([pool.busy, task.cancelled], [0, true]);
    }
    assertEquals(yield* pool.run(() => 1), 1);
  });
});

test("P5 a function is as strict in a worker as in its module", {}, async () => {
  await assertRejects(
    () =>
      run(() =>
        runInWorker(() => {
          (Object.freeze([1]) as any).length = 0;
        })
      ),
    TypeError,
    "read only",
  );
  assertEquals(
    await run(() =>
      runInWorker(
        function (this: unknown) {
          return this;
        } as () => unknown,
      )
    ),
    undefined,
  );
});

test("P5 transferred memory is moved, not copied", {}, async () => {
  await run(function* () {
    const bytes = new Uint8Array([1, 2, 3]);
    const sum = yield* runInWorker((bytes: Uint8Array) => bytes[0] + bytes[2], [bytes], { transfer: [bytes.buffer] });
    assertEquals([sum, bytes.length], [4, 0]);
  });
});

test(
  "P3 a port among the arguments is the web's own, as they were not searched for it",
  {},
  async () => {
    await run(function* () {
      const { port1, port2 } = new MessageChannel();
      const heard = new Promise<MessageEvent>((resolve) => port1.onmessage = resolve);
      const isWebs = (port: MessagePort) => {
        port.postMessage("hello");
        return port instanceof MessagePort && !("on" in port);
      };
      assert(yield* runInWorker(isWebs, [port2], { transfer: [port2] }));
      assertEquals((yield* until(heard)).data, "hello");
      port1.close();
    });
  },
);

test("P4 arguments that do not get through are an error of the run, and the thread goes on", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(1);
    const count = (_: unknown) => (globalThis as any).runs = ((globalThis as any).runs ?? 0) + 1;
    yield* pool.run(count, [1]);
    let deep = {};
    for (let depth = 1; depth < 3200; depth++) deep = { deep }; // The one side can write that, the other cannot read it.
    const error = yield* thrownBy(failAfter(5000, pool.run(count, [deep])));
    assertEquals([error.name, error.message.slice(0, 22)], ["Error", "Cannot run in a worker"]);
    assert(error.cause instanceof Error);
    assertEquals([yield* pool.run(count, [1]), pool.idle], [2, 1]);
  });
});

test("P4 a result that does not get through is an error of the run", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(1);
    const deep = (depth: number) => {
      let value = {};
      while (--depth > 0) value = { value };
      return value;
    };
    // From some depth on our side cannot read it, from another on the thread cannot write it.
    const errors: Error[] = [];
    for (let depth = 2800; depth <= 4000; depth += 200) {
      try {
        yield* failAfter(5000, pool.run(deep, [depth]));
      } catch (error) {
        errors.push(error as Error);
      }
    }
    assert(errors.length > 0 && errors.every((error) => error instanceof RangeError), String(errors));
  });
});

test(
  "P6 a thread whose first job never reached it does not keep the program from ending",
  needs({ run: true }),
  async () => {
    const program = `
    import { Loop, WorkerPool } from "${new URL("../mod.ts", import.meta.url)}";
    const pool = new WorkerPool(1);
    await new Loop().run(pool.run((f) => f, [() => "cannot be copied"])).catch((error) => console.log(error.name));
    console.log(pool.idle);`;
    const command = new Deno.Command(Deno.execPath(), { args: ["eval", program], signal: AbortSignal.timeout(20_000) });
    const { code, stdout } = await command.output();
    assertEquals([code, new TextDecoder().decode(stdout)], [0, "DataCloneError\n1\n"]);
  },
);

test("P6 a pool uses idle workers again, and never has more than its size", {}, async () => {
  await run(function* () {
    using pool = new WorkerPool(2);
    const count = () => (globalThis as any).runs = ((globalThis as any).runs ?? 0) + 1;
    let most = 0;
    function* job(): Coroutine<number> {
      const runs = yield* pool.run(count);
      most = Math.max(most, pool.busy + pool.idle);
      return runs;
    }
    const runs = yield* all([job(), job(), job(), job(), job(), job()]);
    assertEquals(most, 2);
    assertEquals([pool.idle, pool.busy], [2, 0]);
    assert(Math.max(...runs) >= 3, "six runs on two workers: one of them ran at least three");
    assertEquals(runs.filter((n) => n === 1).length, 2);
  });
});

test("P6 a pool that is closed while its first thread begins runs nothing in it", {}, async () => {
  await run(function* (loop) {
    const pool = new WorkerPool(1);
    const running = loop.createTask(thrownBy(pool.run(() => 1)));
    while (running.op?.[0] !== "until") yield* checkpoint();
    pool.close();
    assertEquals([(yield* running.join()).name, pool.idle, pool.busy], ["ClosedError", 0, 0]);
  });
});

test("P6 `using` closes a pool", {}, async () => {
  await run(function* () {
    let used!: WorkerPool;
    {
      using pool = used = new WorkerPool(1);
      yield* pool.run(() => 1);
    }
    assertEquals(used.idle, 0);
    assertEquals((yield* thrownBy(used.run(() => 1))).name, "ClosedError");
  });
});

test("P6 a pool that was used, and not closed, lets the program end", needs({ run: true }), async () => {
  const program = `
    addEventListener("unload", () => console.log("the end"));
    const pool = new WorkerPool(1);
    console.log(await new Loop().run(pool.run(() => 1)));`;
  assertEquals(await runWithGc("Loop, WorkerPool", program), "1\nthe end\n");
});

test("P6 a cancelled run of a pool ends its worker and another takes its place", {}, async () => {
  await run(function* (loop) {
    using pool = new WorkerPool(1);
    const gate = new Int32Array(new SharedArrayBuffer(8));
    yield* pool.run(() => void ((globalThis as any).mark = 1));
    const endless = loop.createTask(pool.run(count, [gate]));
    const waiting: Task<number> = loop.createTask(pool.run(() => (globalThis as any).mark ?? 0));
    const given = loop.createTask(pool.run(() => 1));
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
    given.cancel(); // while it waits for the worker: nothing happens to that
    yield* given.wait();
    assertEquals(pool.busy, 1);
    endless.cancel();
    assertEquals(yield* waiting.join(), 0);
    Atomics.store(gate, 1, 1);
  });
});

test("P6 closing a pool ends what runs and what waits, with ClosedError", {}, async () => {
  await run(function* (loop) {
    const pool = new WorkerPool(1);
    const gate = new Int32Array(new SharedArrayBuffer(8));
    const running = loop.createTask(thrownBy(pool.run(count, [gate])));
    const waiting = loop.createTask(thrownBy(pool.run(() => 1)));
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
    pool.close();
    pool.close();
    Atomics.store(gate, 1, 1);
    assert((yield* running.join()) instanceof ClosedError);
    assert((yield* waiting.join()) instanceof ClosedError);
    assert((yield* thrownBy(pool.run(() => 1))) instanceof ClosedError);
    assertEquals([pool.idle, pool.busy], [0, 0]);
  });
});

test("P6 a pool that is closed by an argument, as it is copied, ends that run too", {}, async () => {
  await run(function* () {
    const pool = new WorkerPool(1);
    const argument = {
      get closes() {
        pool.close();
        return 1;
      },
    };
    assert((yield* thrownBy(pool.run((x) => x, [argument]))) instanceof ClosedError);
    assertEquals([pool.idle, pool.busy], [0, 0]);
    const other = new WorkerPool(1);
    const throws = {
      get closes() {
        other.close();
        throw new RangeError("and it throws");
      },
    };
    assert((yield* thrownBy(other.run((x) => x, [throws]))) instanceof RangeError);
  });
});

test(
  "P6 who waits for a thread that another loop's task uses is not in a deadlock, though others have left",
  {},
  async () => {
    using pool = new WorkerPool(1);
    const gate = new Int32Array(new SharedArrayBuffer(8));
    let left = false;
    const first = run(function* (loop) {
      const endless = loop.createTask(pool.run(count, [gate]));
      yield* untilHolds(() => Atomics.load(gate, 0) > 0);
      assertEquals(yield* moveOnAfter(1, pool.run(() => 1)), undefined);
      left = true;
      yield* endless.join();
    });
    while (!left) await platformTurn();
    const { loop } = simulation(); // Its grace is over at once.
    const second = loop.run(pool.run(() => 2));
    for (let n = 0; n < 20; n++) await platformTurn();
    Atomics.store(gate, 1, 1);
    await first;
    assertEquals(await second, 2);
  },
);

test("P6 K11 a loop that has used the pool and ended hides no deadlock of another", {}, async () => {
  using pool = new WorkerPool(1);
  await run(() => all([pool.run(() => 1), pool.run(() => 1)]));
  const { loop } = simulation(); // Its grace is over at once.
  const main = function* (): Coroutine {
    yield* all([pool.run(() => 2), pool.run(() => 3)]); // The second waits for the thread.
    yield* park(new ParkingLot("nobody"));
  };
  await assertRejects(() => loop.run(main()), DeadlockError, "nobody");
});

test("P6 K11 a loop that uses another thread of the pool hides no deadlock of one that need not wait", {}, async () => {
  using pool = new WorkerPool(2);
  const gate = new Int32Array(new SharedArrayBuffer(8));
  const other = run(() => pool.run(count, [gate]));
  while (Atomics.load(gate, 0) === 0) await platformTurn();
  const { loop } = simulation(); // Its grace is over at once.
  const main = function* (): Coroutine {
    yield* pool.run(() => 1);
    Atomics.store(gate, 1, 1);
    yield* park(new ParkingLot("nobody"));
  };
  await assertRejects(() => loop.run(main()), DeadlockError, "nobody");
  await other;
});

test(
  "P6 closing a pool, or a signal queue, reaches who waits behind a task of a loop that was stopped",
  SIGNALS,
  async () => {
    const pool = new WorkerPool(1);
    const signals = new SignalQueue("SIGHUP");
    const gate = new Int32Array(new SharedArrayBuffer(8));
    const stopped = new Loop();
    stopped.createTask(pool.run(count, [gate]));
    stopped.createTask(signals.get());
    const first = stopped.runForever();
    while (Atomics.load(gate, 0) === 0) await platformTurn();
    stopped.stop();
    await first;
    await run(function* (loop) {
      const waiting = [pool.run(() => 1), signals.get()].map((wait) => loop.createTask(thrownBy(wait)));
      yield* sleep(0);
      pool.close();
      signals.close();
      Atomics.store(gate, 1, 1);
      for (const task of waiting) assert((yield* task.join()) instanceof ClosedError);
      for (const late of [pool.run(() => 1), signals.get()]) assert((yield* thrownBy(late)) instanceof ClosedError);
    });
    await stopped.run(checkpoint()); // ends what it has left
  },
);

test("P6 who waits for a thread looks at each loop that uses the pool, and not at each task", {}, async () => {
  using pool = new WorkerPool(1);
  let looks = 0;
  const { loop } = simulation();
  const original = loop._noteWait;
  loop._noteWait = (other) => {
    looks++;
    original.call(loop, other);
  };
  await loop.run(all(Array.from({ length: 20 }, () => pool.run(() => 1))));
  assert(looks < 100, `${looks} looks`);
});

test("P4 N15 an onError of a pool that throws, or is async and rejects, is printed", {}, async () => {
  const wrong = new Error("bad onError");
  const throwing = () => {
    throw wrong;
  };
  for (const onError of [throwing, () => Promise.reject(wrong)]) assertEquals(await printedBy(onError), [wrong]);
});

test("P4 a pool with no onError prints what it would be told", {}, async () => {
  assertEquals((await printedBy(undefined) as Error[]).map((error) => error.message), ["stray"]);
});

/** What is printed if `onError` of a pool is told of an error. */
async function printedBy(onError: (() => unknown) | undefined): Promise<unknown[]> {
  const printed: unknown[] = [];
  const original = console.error;
  console.error = (...args: unknown[]) => printed.push(args[1]);
  try {
    await run(function* () {
      using pool = new WorkerPool(1, { onError: onError as (() => void) | undefined });
      yield* pool.run(() =>
        void setTimeout(() => {
          throw new Error("stray");
        })
      );
      yield* untilHolds(() => printed.length > 0);
    });
  } finally {
    console.error = original;
  }
  return printed;
}

Deno.test("P6 a pool of no size, and work that cannot travel, are refused where they are written", () => {
  for (const size of [0, -1, 1.5, NaN]) assertThrows(() => new WorkerPool(size), RangeError);
  assertEquals([new WorkerPool(3).size, new WorkerPool().size], [3, navigator.hardwareConcurrency]);
  assertThrows(() => new WorkerPool("5" as any), RangeError, 'a pool of "5" workers');
  assertThrows(() => new WorkerPool(1, { onError: 5 as any }), TypeError, "onError 5: it must be a function");
  assertThrows(() => runInWorker(Object.create(null)), TypeError, "it must be a function or the URL of a module");
  const unheard = Promise.reject(new Error("unheard")) as any;
  assertThrows(() => runInWorker(unheard), TypeError, "Cannot run a value of type Promise in a worker");
  assertThrows(() => runInWorker("./job.ts"), TypeError, 'new URL("./job.ts", import.meta.url)');
  assertThrows(() => runInWorker(5 as any), TypeError, "it must be a function or the URL of a module");
  assertThrows(() => runInWorker(function* () {}), TypeError, "it is a generator");
  assertThrows(() => runInWorker(async function* () {}), TypeError, "it is a generator");
  assertThrows(() => runInWorker(Math.max, [1, 2]), TypeError, 'function "max" in a worker: it is native or bound');
  assertThrows(() => runInWorker(count.bind(null), [new Int32Array()]), TypeError, "native or bound");
  assertEquals(typeof runInWorker(() => "{ [native code] }").next, "function");
  assertEquals(typeof runInWorker(Object.setPrototypeOf(() => 1, null)).next, "function");
  assertThrows(() => runInWorker(class {} as any), TypeError, "it is a class");
  assertEquals(typeof runInWorker((0, eval)("class$ => class$")).next, "function");
  assertThrows(() => runInWorker(() => 1, 5 as any), TypeError, "the arguments must be an array");
});

test("P5 a run whose coroutine is returned by hand ends its worker too", {}, async () => {
  using terminated = new TerminateCounter();
  const gate = new Int32Array(new SharedArrayBuffer(8));
  using pool = new WorkerPool(1);
  const coro = pool.run((gate) => new Promise(() => setInterval(() => Atomics.add(gate, 0, 1), 1)), [gate]);
  await run(function* (): Coroutine {
    let op = coro.next().value as Op;
    while (op[1]?.name !== "runInWorker") op = coro.next(yield op).value as Op;
    op[1]().catch(() => {});
    yield* untilHolds(() => Atomics.load(gate, 0) > 0);
  });
  assertThrows(() => coro.return(undefined), Error, "no task is running here"); // It would wait for the worker's end.
  assertEquals(terminated.count, 1);
});

/** Counts in shared memory until it is told to stop. */
function count(gate: Int32Array): void {
  while (Atomics.load(gate, 1) === 0) Atomics.add(gate, 0, 1);
}

/** Counts the listeners for signals. */
class ListenerCounter {
  count = 0;
  readonly #add = Deno.addSignalListener;
  readonly #remove = Deno.removeSignalListener;

  constructor() {
    Deno.addSignalListener = (name, handler) => {
      this.#add(name, handler);
      this.count++;
    };
    Deno.removeSignalListener = (name, handler) => {
      this.#remove(name, handler);
      this.count--;
    };
  }

  [Symbol.dispose](): void {
    Deno.addSignalListener = this.#add;
    Deno.removeSignalListener = this.#remove;
  }
}

/** Counts the threads that Deno is told to end. */
class TerminateCounter {
  count = 0;
  readonly #terminate = Worker.prototype.terminate;

  constructor(after = (ended: Promise<number>) => ended) {
    const terminate = this.#terminate;
    const count = () => this.count++;
    Worker.prototype.terminate = function () {
      count();
      return after(terminate.call(this));
    };
  }

  [Symbol.dispose](): void {
    Worker.prototype.terminate = this.#terminate;
  }
}
