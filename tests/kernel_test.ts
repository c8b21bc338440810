// deno-lint-ignore-file no-inner-declarations -- a coroutine stands beside the loop of cases that it belongs to
/** Rules K1 to K17: the kernel. Time is simulated, save where a test is about the real world. */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertMatch,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import { runInNewContext } from "node:vm";
import {
  type Addr,
  all,
  call,
  Cancelled,
  type CancelScope,
  cancelScope,
  checkpoint,
  ClosedError,
  connect,
  type Coroutine,
  currentTask,
  type DatagramLike,
  DeadlockError,
  Event,
  EVENT_READ,
  EVENT_WRITE,
  listen,
  Loop,
  moveOnAfter,
  type Op,
  type OpHandler,
  park,
  ParkingLot,
  readWait,
  runningLoop,
  type Selector,
  serve,
  shield as shielded,
  sleep,
  type SocketLike,
  socketPair,
  Stream,
  type Task,
  TaskError,
  type TaskGroup,
  taskGroup,
  TaskLocal,
  until,
  WouldBlock,
  writeWait,
} from "../mod.ts";
import { runningLoopOrNull } from "../loop.ts";
import { FakeSocket, platformTurn, random, simulate, type Simulation, simulation, thrownBy } from "./world.ts";
import { runWithGc } from "./heap.ts";
import { needs } from "./permissions.ts";

function* value<T>(value: T): Coroutine<T> {
  return value;
}

function* fails(error: unknown, ops = 0): Coroutine<never> {
  for (let i = 0; i < ops; i++) yield* checkpoint();
  throw error;
}

/** Counts its own steps in `log`. */
function* says(log: string[], name: string, times: number): Coroutine {
  for (let i = 1; i <= times; i++) {
    log.push(`${name}${i}`);
    yield* checkpoint();
  }
}

// ---- K1 ----------------------------------------------------------------------------------------------------------

Deno.test("K1 run resolves to the value of main", async () => {
  assertEquals(await simulate(() => value(42)), 42);
  assertEquals(
    await simulate(function* () {
      yield* sleep(10);
      return "late";
    }),
    "late",
  );
});

Deno.test("K1 run rejects with the very object that main threw", async () => {
  const error = new Error("mine");
  assertStrictEquals(await simulate(() => fails(error)).catch((e) => e), error);
  assertStrictEquals(await simulate(() => fails(error, 3)).catch((e) => e), error);
  assertEquals(await simulate(() => fails("a string")).catch((e) => e), "a string");
  const frozen = Object.freeze(new Error("frozen"));
  assertStrictEquals(await simulate(() => fails(frozen)).catch((e) => e), frozen);
});

Deno.test("K1 the error of main survives what is left getting stuck", async () => {
  const error = new Error("mine");
  const stuck = await simulate(function* ({ loop }) {
    loop.createTask((function* () {
      try {
        yield* sleep(1000);
      } finally {
        yield* shielded(park(new ParkingLot("godot")));
      }
    })());
    yield* checkpoint();
    throw error;
  }).catch((e) => e);
  assertInstanceOf(stuck, DeadlockError);
  assertStrictEquals(stuck.cause, error);
});

// ---- K2 ----------------------------------------------------------------------------------------------------------

Deno.test("K2 tasks that are ready step in the order in which they became so", async () => {
  const log: string[] = [];
  await simulate(function* ({ loop }) {
    const tasks = ["a", "b", "c"].map((name) => loop.createTask(says(log, name, 3)));
    for (const task of tasks) yield* task.join();
  });
  assertEquals(log, ["a1", "b1", "c1", "a2", "b2", "c2", "a3", "b3", "c3"]);
});

Deno.test("K2 main is ready as soon as run is called: what is created after that comes after it", async () => {
  const { loop } = simulation();
  const log: string[] = [];
  const running = loop.run(says(log, "main", 1));
  loop.createTask(says(log, "other", 1));
  assertEquals([...loop.tasks].map((task) => task.name), ["main", "Task-2"]);
  await running;
  assertEquals(log, ["main1", "other1"]);
});

Deno.test("K2 an op that gives nothing gives nothing, whatever the one before has given", async () => {
  await simulate(function* () {
    for (const op of [checkpoint, () => sleep(0), () => sleep(1)]) {
      assertEquals(yield* until(Promise.resolve(5)), 5);
      assertEquals(yield* op(), undefined);
    }
  });
});

Deno.test("K2 a task is called what it was named, though that is empty", async () => {
  await simulate(function* ({ loop }) {
    const tasks = ["", "worker", undefined].map((name) => loop.createTask(checkpoint(), { name }));
    assertEquals(tasks.map((task) => task.name), ["", "worker", "Task-4"]);
  });
});

Deno.test("K2 ready is a deque: what is taken comes in order, and from an empty one nothing comes", () => {
  const { loop } = simulation();
  const tasks = [loop.createTask(sleep(1)), loop.createTask(sleep(2))];
  assertEquals([loop.ready.popleft(), loop.ready.popleft()], tasks);
  assertEquals([loop.ready.popleft(), loop.ready.length], [undefined, 0]);
  loop.ready.append(tasks[1]);
  assertEquals([loop.ready.popleft(), loop.ready.length], [tasks[1], 0]);
  for (let i = 0; i < 200_000; i++) loop.ready.append(tasks[i % 3 % 2]); // It grows on the way, and shrinks again.
  for (let i = 0; i < 200_000; i++) if (loop.ready.popleft() !== tasks[i % 3 % 2]) throw `out of order at ${i}`;
  assertEquals(loop.ready.popleft(), undefined);
});

Deno.test("K2 what the run band makes ready runs in the next turn", async () => {
  const { loop, world } = simulation();
  const turns: [string, number][] = [];
  const turn = () => world.counts.poll + world.counts.select;
  function* child(): Coroutine {
    turns.push(["child", turn()]);
  }
  function* first(): Coroutine {
    loop.createTask(child());
    turns.push(["first", turn()]);
  }
  function* second(): Coroutine {
    turns.push(["second", turn()]);
  }
  loop.createTask(first());
  loop.createTask(second());
  await loop.runForever();
  assertEquals(turns.map(([name]) => name), ["first", "second", "child"]);
  assertEquals(turns[0][1], turns[1][1]);
  assert(turns[2][1] > turns[1][1]);
});

Deno.test("K2 in one turn sockets come before timers, and both before new steps", async () => {
  const log: string[] = [];
  await simulate(function* ({ loop, world }) {
    const sock = new FakeSocket();
    function* reader(): Coroutine {
      yield* readWait(sock);
      log.push("socket");
    }
    function* sleeper(): Coroutine {
      yield* sleep(10);
      log.push("timer");
    }
    const tasks = [loop.createTask(sleeper()), loop.createTask(reader())];
    yield* checkpoint();
    yield* checkpoint();
    sock.ready = 1;
    world.hold(10);
    yield* checkpoint(); // It goes on in the turn in which both have come.
    tasks.push(loop.createTask(says(log, "new step ", 1)));
    for (const task of tasks) yield* task.wait();
  });
  assertEquals(log, ["socket", "timer", "new step 1"]);
});

// ---- K3 ----------------------------------------------------------------------------------------------------------

function* forever(ended: () => boolean): Coroutine {
  const until = performance.now() + 5000;
  for (let i = 0; !ended(); i++) {
    if (i % 1000 === 0 && performance.now() > until) throw new Error("Starved");
    yield* checkpoint();
  }
}

Deno.test("K3 two tasks that ping-pong starve neither a third nor a timer of Deno's", async () => {
  const seen = new Set<string>();
  const loop = new Loop();
  const timer = setTimeout(() => seen.add("timer"), 1);
  function* third(): Coroutine {
    yield* sleep(1);
    seen.add("third");
  }
  loop.createTask(forever(() => seen.size === 2));
  loop.createTask(forever(() => seen.size === 2));
  loop.createTask(third());
  await loop.runForever();
  clearTimeout(timer);
  assertEquals(seen.size, 2);
});

Deno.test("K3 two tasks that ping-pong starve no socket", needs({ net: true }), async () => {
  let echoed = 0;
  const loop = new Loop();
  function* server(): Coroutine {
    using listener = listen({ hostname: "127.0.0.1", port: 0 });
    const client = loop.createTask(talk(listener.addr.port));
    const [sock] = yield* loop.sockAccept(listener);
    using _sock = sock;
    for (let data; (data = yield* loop.sockRecv(sock, 100)).length > 0;) yield* loop.sockSendall(sock, data);
    yield* client.join();
  }
  function* talk(port: number): Coroutine {
    using sock = yield* connect({ hostname: "127.0.0.1", port });
    for (; echoed < 20; echoed++) {
      yield* loop.sockSendall(sock, new Uint8Array(10));
      yield* loop.sockRecv(sock, 10);
    }
  }
  loop.createTask(forever(() => echoed === 20));
  loop.createTask(forever(() => echoed === 20));
  loop.createTask(server());
  await loop.runForever();
  assertEquals(echoed, 20);
});

Deno.test("K3 steps that hold the thread for a while do not starve a timer of Deno's", async () => {
  let heavy = 0;
  let heard = -1;
  const timer = setTimeout(() => heard = heavy, 1);
  await new Loop().run((function* () {
    for (; heard < 0 && heavy < 40; heavy++) {
      const end = performance.now() + 1;
      while (performance.now() < end);
      yield* checkpoint();
    }
  })());
  clearTimeout(timer);
  assert(heard >= 0 && heard < 40, `heard after ${heard} steps of 1 ms`);
});

const signals = { ...needs({ run: true }) };
signals.ignore ||= Deno.build.os === "windows";

Deno.test("K3 two tasks that ping-pong starve no signal", signals, async () => {
  let heard = false;
  const listener = () => heard = true;
  Deno.addSignalListener("SIGHUP", listener);
  try {
    const loop = new Loop();
    loop.createTask(forever(() => heard));
    loop.createTask(forever(() => heard));
    Deno.kill(Deno.pid, "SIGHUP");
    await loop.runForever();
  } finally {
    Deno.removeSignalListener("SIGHUP", listener);
  }
  assert(heard);
});

Deno.test("K3 a task whose waits are over at once starves nobody either", needs({ net: true }), async () => {
  for (const kind of ["socket", "promise"]) {
    let heard = false;
    const timer = setTimeout(() => heard = true, 1);
    await new Loop().run((function* () {
      using listener = listen({ hostname: "127.0.0.1", port: 0 });
      using sock = yield* connect({ hostname: "127.0.0.1", port: listener.addr.port });
      const end = performance.now() + 5000;
      while (!heard && performance.now() < end) {
        if (kind === "socket") yield* writeWait(sock);
        else yield* until(Promise.resolve());
      }
    })());
    clearTimeout(timer);
    assert(heard, `A ${kind} that is always ready starved a timer`);
  }
});

Deno.test("K3 steps that become long after many short ones let the platform turn soon", async () => {
  await simulate(function* ({ world }) {
    for (let i = 0; i < 300; i++) yield* checkpoint();
    const before = world.counts.select;
    for (let i = 0; i < 40; i++) {
      world.hold(10);
      yield* checkpoint();
    }
    assert(world.counts.select > before);
  });
});

// ---- K4 ----------------------------------------------------------------------------------------------------------

Deno.test("K4 sleep(n) waits at least n on the loop's clock", async () => {
  await simulate(function* ({ world }) {
    for (const ms of [1, 0.1, 7, 1 / 3, 1e-9, 1e6 + 0.7]) {
      const start = world.now();
      yield* sleep(ms);
      assert(world.now() - start >= ms * (1 - 1e-9), `slept ${world.now() - start} of ${ms}`);
    }
  });
});

Deno.test("K4 a real sleep is not shorter than asked", async () => {
  const loop = new Loop();
  for (let i = 0; i < 10; i++) {
    const start = performance.now();
    await loop.run(sleep(1.5));
    assert(performance.now() - start >= 1.5);
  }
});

Deno.test("K4 equal deadlines fire in the order they were set, others in order of time", async () => {
  const log: string[] = [];
  await simulate(function* ({ loop }) {
    function* one(ms: number, name: string): Coroutine {
      yield* sleep(ms);
      log.push(name);
    }
    const times = [5, 1, 5, 3, 5, 1, 5, 3, 5, 5];
    const tasks = times.map((ms, i) => loop.createTask(one(ms, `${ms}.${i}`)));
    for (const task of tasks) yield* task.join();
  });
  assertEquals(log, ["1.1", "1.5", "3.3", "3.7", "5.0", "5.2", "5.4", "5.6", "5.8", "5.9"]);
});

Deno.test("K4 ten thousand timers set and half of them removed at random fire in order", async () => {
  const next = random(1);
  const fired: number[] = [];
  await simulate(function* ({ loop }) {
    function* one(ms: number): Coroutine {
      yield* sleep(ms);
      fired.push(ms);
    }
    const tasks = Array.from({ length: 10_000 }, () => loop.createTask(one(next(1000))));
    yield* checkpoint();
    const rest = tasks.filter((task) => next(2) === 0 || task.cancel());
    for (const task of tasks) yield* task.wait();
    assertEquals(fired.length, rest.length);
  });
  assertEquals(fired, fired.toSorted((a, b) => a - b));
});

Deno.test("K4 a few timers set in any order fire in order", async () => {
  const next = random(1);
  await simulate(function* ({ loop }) {
    for (let round = 0; round < 100; round++) {
      const fired: number[] = [];
      function* one(ms: number): Coroutine {
        yield* sleep(ms);
        fired.push(ms);
      }
      const tasks = Array.from({ length: 8 }, () => loop.createTask(one(next(1000))));
      for (const task of tasks) yield* task.join();
      assertEquals(fired, fired.toSorted((a, b) => a - b));
    }
  });
});

Deno.test("K4 sleep(0) is a full turn", async () => {
  const log: string[] = [];
  await simulate(function* ({ loop }) {
    function* zero(): Coroutine {
      log.push("before");
      yield* sleep(0);
      log.push("after");
    }
    const tasks = [loop.createTask(zero()), loop.createTask(says(log, "a", 1)), loop.createTask(says(log, "b", 1))];
    for (const task of tasks) yield* task.join();
  });
  assertEquals(log, ["before", "a1", "b1", "after"]);
});

Deno.test("K4 a sleep longer than 2^31-1 ms works, simulated and real", async () => {
  assertEquals(
    await simulate(function* ({ world }) {
      yield* sleep(2 ** 31 + 5);
      return world.now();
    }),
    2 ** 31 + 5,
  );
  const loop = new Loop();
  await loop.run((function* () {
    const long = loop.createTask(sleep(2 ** 31 + 5));
    const endless = loop.createTask(sleep(Infinity));
    yield* sleep(5);
    assertEquals([long.done, endless.done], [false, false]);
  })());
});

Deno.test("K4 a duration that is none throws where it was written", async () => {
  for (const ms of [-1, NaN, -Infinity, "10", undefined, null, {}] as number[]) {
    assertThrows(() => sleep(ms), RangeError, "Cannot sleep for");
  }
  assertThrows(() => sleep(10n as never), RangeError, "Cannot sleep for 10n ms");
  await simulate(function* () {
    const error = yield* thrownBy(function* () {
      yield ["sleep", -1];
    });
    assertInstanceOf(error, RangeError);
  });
});

Deno.test("K4 the selector is never asked to wait for less than no time, and for Infinity if a task sleeps that long", async () => {
  const asked: (number | undefined)[] = [];
  const select = async (timeout?: number): Promise<[]> => {
    asked.push(timeout);
    await (timeout === Infinity ? new Promise(() => {}) : platformTurn());
    return [];
  };
  let now = 0;
  const clock = { now: () => now += 0.75 }; // Each look at it takes time: what is due may have been due for a while.
  const loop = new Loop({ selector: { select, register() {}, unregister() {}, close() {} }, clock });
  const running = loop.run((function* (): Coroutine {
    for (let i = 0; i < 20; i++) yield* sleep(i / 4);
    yield* sleep(Infinity);
  })());
  while (asked.at(-1) !== Infinity) await platformTurn();
  for (const task of loop.tasks) task.cancel();
  await assertRejects(() => running, Cancelled);
  assertEquals(asked.filter((timeout) => !(timeout! >= 0)), []);
});

Deno.test("K4 a sleep without end keeps the program going", needs({ run: true }), async () => {
  const program = `
    Deno.unrefTimer(setTimeout(() => loop.stop(), 20));
    const loop = new Loop();
    loop.createTask(sleep(Infinity));
    await loop.runForever();
    console.log("stopped");`;
  assertEquals(await runWithGc("Loop, sleep", program), "stopped\n");
});

// ---- K5 ----------------------------------------------------------------------------------------------------------

/** Yields `op` and returns what is thrown there, with another task running on. */
async function misuse(op: unknown): Promise<string> {
  const log: string[] = [];
  const message = await simulate(function* ({ loop }) {
    const other = loop.createTask(says(log, "other", 3));
    let message = "nothing was thrown";
    try {
      yield op as Op;
    } catch (error) {
      assertInstanceOf(error, TypeError);
      message = error.message;
    }
    yield* other.join();
    return message;
  });
  assertEquals(log, ["other1", "other2", "other3"]);
  return message;
}

Deno.test("K5 an unknown op is a TypeError at that yield, which tells the known ones", async () => {
  const message = await misuse(["read_weight", 7]);
  assertStringIncludes(message, `"read_weight"`);
  assertStringIncludes(message, "read_wait, write_wait, sleep, checkpoint");
  for (const name of ["constructor", "__proto__", "toString", "hasOwnProperty", ""]) {
    assertStringIncludes(await misuse([name]), `Cannot perform op "${name}": it is unknown`);
  }
});

Deno.test("K5 a yielded promise is told to use until", async () => {
  assertStringIncludes(await misuse(Promise.resolve(1)), "yield* until(promise)");
  assertStringIncludes(await misuse({ then() {} }), "yield* until(promise)");
  assertStringIncludes(await misuse(Promise.reject(new Error("must not end the program"))), "yield* until(promise)");
  await platformTurn();
});

Deno.test("K5 a yielded coroutine is told of the missing star", async () => {
  assertStringIncludes(await misuse(sleep(1)), "the * is missing, write yield* f()");
  assertStringIncludes(await misuse(says([], "x", 1)), "the * is missing, write yield* f()");
});

Deno.test("K5 a yielded task is told to be joined, and its error is not lost", async () => {
  const { loop, errors } = simulation();
  const error = new Error("of the task");
  await loop.run((function* () {
    const task = loop.createTask(fails(error, 1));
    const thrown = yield* thrownBy(function* () {
      yield task as unknown as Op;
    });
    assertInstanceOf(thrown, TypeError);
    assertStringIncludes(thrown.message, "yield* task.join()");
    yield* task.wait();
  })());
  assertEquals(errors.map((e) => e.error), [error]);
});

Deno.test("K5 a yielded function is told to be called", async () => {
  assertStringIncludes(await misuse(sleep), "call it, and pass it on, as in yield* sleep()");
  assertStringIncludes(await misuse(() => {}), "as in yield* f()");
});

Deno.test("K5 anything else that is not an op is a TypeError at that yield", async () => {
  const proxy = new Proxy({}, {
    get() {
      throw new TypeError("hostile");
    },
  });
  for (const op of [undefined, null, 0, "sleep", true, {}, Symbol("s"), Object.create(null), 10n, []]) {
    assertStringIncludes(await misuse(op), "it is not an op");
  }
  for (const name of [undefined, null, 1, Symbol("s"), {}, () => {}, Object.create(null)]) {
    assertStringIncludes(await misuse([name]), "it is not an op");
  }
  await misuse(proxy);
});

Deno.test("K5 an op that throws when it is looked at, or a clock that does, is an error at that yield", async () => {
  const revoked = Proxy.revocable([], {});
  revoked.revoke();
  const mined = new Proxy([], {
    get() {
      throw new TypeError("Do not look");
    },
  });
  const { loop, world } = simulation({ trace: undefined });
  await loop.run((function* () {
    for (const op of [revoked.proxy, mined] as unknown as Op[]) {
      assertInstanceOf(
        yield* thrownBy(function* () {
          yield op;
        }),
        TypeError,
      );
    }
    yield* moveOnAfter(
      100,
      (function* () {
        const now = world.now;
        world.now = () => {
          world.now = now;
          throw new Error("the clock is broken");
        };
        assertMatch(`${yield* thrownBy(checkpoint)}`, /the clock is broken/);
      })(),
    );
    yield* sleep(1);
  })());
});

Deno.test("K5 a selector or clock that throws leaves no loop running behind", async () => {
  const { loop, world } = simulation();
  const { now, unregister } = world;
  world.now = () => {
    throw new Error("the clock is broken");
  };
  await assertRejects(() => loop.run(sleep(1)), Error, "the clock is broken");
  world.now = now;
  world.unregister = () => {
    throw new Error("the selector is broken");
  };
  const sock = new FakeSocket();
  sock.ready = EVENT_READ;
  await assertRejects(() => loop.run(readWait(sock)), Error, "the selector is broken");
  assertEquals([runningLoopOrNull(), loop.currentTask], [null, null]);
  world.unregister = unregister;
  assertEquals(await loop.run(value(1)), 1);
});

Deno.test("K5 N15 the rejection of a thenable that is yielded is heard", async () => {
  await simulate(function* () {
    const promise = Promise.reject(new Error("nobody waits for it"));
    function* mistaken(): Coroutine {
      yield { then: promise.then.bind(promise) } as any;
    }
    assertInstanceOf(yield* thrownBy(mistaken), TypeError);
    yield* until(platformTurn());
  });
});

Deno.test("K5 a thenable that is yielded and throws when it is asked is told what the mistake was", async () => {
  await simulate(function* () {
    function* mistaken(): Coroutine {
      yield {
        then() {
          throw new Error("asked");
        },
      } as any;
    }
    assertStringIncludes((yield* thrownBy(mistaken)).message, "write yield* until(promise)");
    yield* until(platformTurn());
  });
});

Deno.test("K5 an error that a selector throws again as the loop shuts down is not its own cause", async () => {
  const { loop, world } = simulation();
  const error = new Error("broken");
  world.select = world.poll = () => {
    throw error;
  };
  loop.createTask(sleep(1));
  await assertRejects(() => loop.run(sleep(1)), Error, "broken");
  assertEquals("cause" in error, false);
});

Deno.test("K5 K15 what is no op, and cannot be made a string, is traced too", async () => {
  await simulate(function* () {
    function* mistaken(): Coroutine {
      yield Object.create(null);
    }
    assertInstanceOf(yield* thrownBy(mistaken), TypeError);
  }, { trace: () => {} });
});

// ---- K6 ----------------------------------------------------------------------------------------------------------

Deno.test("K6 createTask says what to pass", () => {
  const { loop } = simulation();
  const make = (coro: unknown) => () => loop.createTask(coro as Coroutine);
  function* main(): Coroutine {}
  assertThrows(make(main), TypeError, "createTask(main())");
  assertThrows(make(() => {}), TypeError, "call it");
  assertThrows(make(Promise.resolve()), TypeError, "until(promise)");
  assertThrows(make((async () => {})()), TypeError, "until(promise)");
  async function* wrong() {}
  for (const thing of [undefined, null, 1, "x", {}, [], new Set().values(), wrong()]) {
    assertThrows(make(thing), TypeError, "the generator that a function* returns");
  }
  assertEquals([...loop.tasks], []);
});

Deno.test("K6 what has no name of its own is told by its kind, and long text is not repeated", async () => {
  async function* asyncGenerator() {}
  const loop = new Loop();
  assertThrows(() => loop.createTask(asyncGenerator() as never), TypeError, "a value of type AsyncGenerator:");
  const error = await loop.run(thrownBy(() => loop.sockSendall({} as never, "text".repeat(100) as never)));
  assertStringIncludes(String(error), "Cannot send a string: it must be a Uint8Array");
  const unheard = Promise.reject(new Error("unheard")) as never;
  assertInstanceOf(await loop.run(thrownBy(() => loop.sockSendall({} as never, unheard))), TypeError);
});

Deno.test("K6 what is not a socket, or not of the right kind, can neither be sent on nor received from", async () => {
  const loop = new Loop();
  const [data, addr] = [new Uint8Array(1), { transport: "udp", hostname: "127.0.0.1", port: 1 } as const];
  const operations: Record<string, (sock: never) => Coroutine<unknown>> = {
    recv: (sock) => loop.sockRecv(sock, 1),
    recvInto: (sock) => loop.sockRecvInto(sock, data),
    send: (sock) => loop.sockSendall(sock, data),
    recvfrom: (sock) => loop.sockRecvfrom(sock, 1),
    sendto: (sock) => loop.sockSendto(sock, data, addr),
  };
  const can = (...methods: string[]) => Object.fromEntries(methods.map((method) => [method, () => 1]));
  const [stream, datagram] = [can("recv", "recvInto", "send"), can("recvfrom", "sendto")];
  for (const [method, operation] of Object.entries(operations)) {
    for (const sock of [undefined, null, 7, "somesocket", {}, method in stream ? datagram : stream]) {
      const error = await loop.run(thrownBy(() => operation(sock as never)));
      assertInstanceOf(error, TypeError);
      assertMatch(error.message, new RegExp(`^Cannot ${method} on .*: it is not a socket that can$`));
    }
  }
});

/** A socket of both kinds that nothing arrives at. */
function silentSocket(): SocketLike & DatagramLike {
  const nothing = () => {
    throw new WouldBlock("nothing has arrived");
  };
  return { id: 1, recv: nothing, recvInto: nothing, recvfrom: nothing, send: nothing, sendto: nothing, sent: nothing };
}

Deno.test("K6 what is wrong with a socket operation is told before it waits", () => {
  const [loop, sock] = [new Loop(), silentSocket()];
  const addr = { transport: "udp", hostname: "127.0.0.1", port: 1 } as const;
  assertThrows(() => loop.sockRecv(sock, 0).next(), RangeError, "recv 0 bytes");
  assertThrows(() => loop.sockRecvfrom(sock, 0.5).next(), RangeError, "recv 0.5 bytes");
  assertThrows(() => loop.sockRecvInto(sock, "text" as never).next(), TypeError, "must be a Uint8Array");
  assertThrows(() => loop.sockRecvInto(sock, new Uint8Array(0)).next(), TypeError, "an empty buffer");
  assertThrows(() => loop.sockSendall(sock, "text" as never).next(), TypeError, "must be a Uint8Array");
  assertThrows(() => loop.sockSendto(sock, "text" as never, addr).next(), TypeError, "must be a Uint8Array");
});

Deno.test("C7 only a Cancelled says how much was sent; what was transferred meanwhile is not sent", () => {
  const [loop, sock] = [new Loop(), silentSocket()];
  const addr = { transport: "udp", hostname: "127.0.0.1", port: 1 } as const;
  for (
    const send of [
      (data: Uint8Array) => loop.sockSendall(sock, data),
      (data: Uint8Array) => loop.sockSendto(sock, data, addr),
    ]
  ) {
    for (const error of [new Cancelled(), new Error("reset")]) {
      const sending: Coroutine<unknown> = send(new Uint8Array(5));
      sending.next();
      assertThrows(() => sending.throw(error));
      assertEquals("bytesSent" in error, error instanceof Cancelled);
      assertFalse(sock.sending);
    }
    const data = new Uint8Array(5);
    const sending: Coroutine<unknown> = send(data);
    sending.next();
    data.buffer.transfer();
    assertThrows(() => sending.next(), TypeError, "transferred or resized before they were sent");
  }
});

Deno.test("K6 a mistake that cannot be put in words is told all the same", async () => {
  const loop = new Loop();
  const strange: never[] = [Symbol("s"), Object.create(null)] as never[];
  for (const thing of strange) {
    const error = await loop.run(thrownBy(() => park(thing)));
    assertStringIncludes(error.message, "it is not a ParkingLot");
    assertThrows(() => cancelScope(function* () {}, { deadline: thing }), RangeError, "it must be a number");
  }
});

Deno.test("K6 a coroutine that is running or finished cannot be a task again", async () => {
  await simulate(function* ({ loop }) {
    const coro = says([], "x", 2);
    const task = loop.createTask(coro);
    assertThrows(() => loop.createTask(coro), TypeError, "it runs already, or has run");
    yield* checkpoint();
    assertThrows(() => loop.createTask(coro), TypeError, "it runs already, or has run");
    yield* task.join();
    assertThrows(() => loop.createTask(coro), TypeError, "it runs already, or has run");
    const op = sleep(1);
    yield* loop.createTask(op).join();
    assertThrows(() => loop.createTask(op), TypeError, "it runs already, or has run");
    const stepped = sleep(1);
    yield* stepped;
    assertThrows(() => loop.createTask(stepped), TypeError, "it runs already, or has run");
  });
});

Deno.test("K6 run rejects what is not a coroutine, and the loop can be used after that", async () => {
  const { loop } = simulation();
  await assertRejects(() => loop.run((() => {}) as unknown as Coroutine), TypeError, "call it");
  assertEquals(await loop.run(value(1)), 1);
});

Deno.test("K6 what run is given and cannot run is told in the words of run", async () => {
  const run = (main: unknown) => simulation().loop.run(main as Coroutine);
  await assertRejects(() => run(value), TypeError, "Cannot run a function: call it, as in run(value())");
  await assertRejects(() => run(Promise.reject(new Error("expected"))), TypeError, "as in run(until(promise))");
});

Deno.test("K6 an empty buffer to receive into is refused at once, and not when something arrives", async () => {
  await simulate(function* ({ loop }) {
    const [silent] = socketPair();
    const refused = loop.createTask(thrownBy(loop.sockRecvInto(silent, new Uint8Array(0))));
    yield* checkpoint();
    assertInstanceOf(refused.result(), TypeError);
    silent.close();
  });
});

// ---- K7 ----------------------------------------------------------------------------------------------------------

Deno.test("K7 createTask from a promise callback wakes an idle loop", async () => {
  for (const make of [() => simulation().loop, () => new Loop()]) {
    const loop = make();
    const lot = new ParkingLot<string>("news");
    function* main(): Coroutine<string> {
      return yield* park(lot);
    }
    function* outsider(): Coroutine {
      lot.unpark("from outside");
    }
    const result = loop.run(main());
    await platformTurn();
    await Promise.resolve().then(() => loop.createTask(outsider()));
    assertEquals(await result, "from outside");
  }
});

Deno.test("K7 createTask from a signal handler wakes an idle loop", signals, async () => {
  const loop = new Loop();
  const lot = new ParkingLot("the signal");
  function* handler(): Coroutine {
    lot.unpark();
  }
  const listener = () => loop.createTask(handler());
  Deno.addSignalListener("SIGUSR2", listener);
  try {
    const result = loop.run((function* () {
      yield* park(lot);
      return "woken";
    })());
    Deno.kill(Deno.pid, "SIGUSR2");
    assertEquals(await result, "woken");
  } finally {
    Deno.removeSignalListener("SIGUSR2", listener);
  }
});

Deno.test("K7 a selector that cannot be woken does not keep a new task waiting", async () => {
  const { world } = simulation();
  const selector = {
    register: () => {
      throw new Error("Not needed");
    },
    unregister: () => {},
    select: (timeout?: number) =>
      timeout === undefined ? new Promise<[]>(() => {}) : world.select(timeout) as Promise<[]>,
    close: () => {},
  };
  const loop = new Loop({ selector, clock: world });
  const promise = Promise.withResolvers<string>();
  const result = loop.run(until(promise.promise));
  await platformTurn();
  loop.createTask((function* () {
    promise.resolve("woken");
  })());
  assertEquals(await result, "woken");
});

Deno.test("K7 createTask from outside wakes an idle loop at once, not when a grace is over", async () => {
  const { loop } = simulation();
  const lot = new ParkingLot();
  const result = loop.run(park(lot));
  await platformTurn();
  loop.createTask((function* (): Coroutine {
    lot.unpark();
  })());
  await result;
  assertEquals(loop.time(), 0);
});

// ---- K8 ----------------------------------------------------------------------------------------------------------

Deno.test("K8 a task that fails with nobody to join it reaches onError once, and the loop goes on", async () => {
  const error = new Error("lonely");
  const errors: Simulation["errors"] = [];
  const [task] = await simulate(function* ({ loop }) {
    const task = loop.createTask(fails(error));
    yield* sleep(10);
    assertStrictEquals(yield* thrownBy(() => task.join()), error);
    yield* sleep(10);
    return [task]; // A task alone would be awaited.
  }, { errors });
  assertEquals(errors.length, 1);
  assertStrictEquals(errors[0].error, error);
  assertStrictEquals(errors[0].task, task);
});

Deno.test("K8 an error that nobody takes is reported before the next turn", async () => {
  await simulate(function* ({ loop, errors }): Coroutine<void> {
    loop.createTask(fails("the first"));
    loop.createTask(fails("the second", 1));
    for (const reported of [0, 0, 1, 2]) { // they are made in the first turn, and step in the second
      assertEquals(errors.length, reported);
      yield* checkpoint();
    }
    errors.length = 0;
  });
});

Deno.test("K8 an error that somebody joins for, awaits or asked to be told of is not reported", async () => {
  await simulate(function* ({ loop }) {
    const error = new Error("expected");
    const joined = loop.createTask(fails(error, 5));
    assertStrictEquals(yield* thrownBy(() => joined.join()), error);
    const awaited = loop.createTask(fails(error, 5));
    assertStrictEquals(yield* until(awaited.then(() => {}, (e) => e)), error);
    const told: unknown[] = [];
    const watched = loop.createTask(fails(error, 5));
    watched.addDoneCallback((task) => told.push(task.error));
    yield* watched.wait();
    assertEquals(told, [error]);
  });
});

Deno.test("K8 the error is reported when its joiner gives up in any order", async () => {
  for (const order of ["the joiner first", "the task first", "the joiner much earlier", "the joiner after the error"]) {
    const errors: Simulation["errors"] = [];
    await simulate(function* ({ loop }) {
      const lot = new ParkingLot("a reason");
      function* failing(): Coroutine {
        yield* park(lot);
        throw new Error("nobody hears me");
      }
      const task = loop.createTask(failing());
      const joiner = loop.createTask(task.join());
      yield* checkpoint();
      yield* checkpoint();
      if (order !== "the task first") joiner.cancel();
      if (order === "the joiner much earlier") yield* sleep(1);
      lot.unpark();
      if (order === "the task first") joiner.cancel();
      yield* task.wait();
      yield* joiner.wait();
      yield* sleep(1);
      if (order === "the joiner after the error") {
        const late = loop.createTask(task.join());
        late.cancel();
        yield* late.wait();
      }
    }, { errors });
    assertEquals(errors.map((e) => String(e.error)), ["Error: nobody hears me"], order);
  }
});

Deno.test("K8 by default the task's name and the stack go to stderr", async () => {
  const { world } = simulation();
  const printed: unknown[][] = [];
  const original = console.error;
  console.error = (...args: unknown[]) => printed.push(args);
  try {
    const loop = new Loop({ selector: world, clock: world });
    await loop.run((function* () {
      loop.createTask(fails(new Error("lonely")), { name: "worker-7" });
      yield* sleep(1);
    })());
  } finally {
    console.error = original;
  }
  const text = printed.flat().map((part) => part instanceof Error ? part.stack : String(part)).join("\n");
  assertEquals(printed.length, 1);
  assertStringIncludes(text, "worker-7");
  assertStringIncludes(text, "Error: lonely");
  assertStringIncludes(text, "kernel_test.ts");
});

/** What `body` prints to stderr. */
async function printedBy(body: () => Promise<void>): Promise<string> {
  const printed: string[] = [];
  const original = console.error;
  console.error = (...args: unknown[]) => printed.push(args.map(String).join(" "));
  try {
    await body();
  } finally {
    console.error = original;
  }
  return printed.join("\n");
}

Deno.test("K8 N15 an onError that throws, or an async one that rejects, is printed and stops nothing", async () => {
  const wrong = new Error("bad onError");
  const throwing = () => {
    throw wrong;
  };
  for (const onError of [throwing, () => Promise.reject(wrong)] as (() => void)[]) {
    const printed = await printedBy(async () => {
      const result = await simulate(function* ({ loop }) {
        loop.createTask(fails(new Error("lonely")));
        yield* sleep(1);
        return "still here";
      }, { onError });
      assertEquals(result, "still here");
    });
    for (const word of ["Error in a hook", "bad onError", "lonely"]) assertStringIncludes(printed, word);
  }
});

Deno.test("K8 a trace that throws, or an async one that rejects, is reported to onError", async () => {
  for (const async of [false, true]) {
    const wrong = new Error("bad trace");
    const errors: Simulation["errors"] = [];
    const trace = () => {
      if (async) return Promise.reject(wrong);
      throw wrong;
    };
    await simulate(function* () {
      yield* sleep(1);
      return yield* sleep(1);
    }, { errors, trace });
    assertEquals(errors.map(({ error, task }) => [error, task?.name]), [[wrong, "main"], [wrong, "main"]]);
  }
});

for (
  const [name, wait] of [["until(task)", (task: Task) => until(task)], [
    "until(() => task)",
    (task: Task) => until(() => task),
  ]] as const
) {
  Deno.test(`K8 a task's error is reported when a cancelled ${name} does not wait for it any more`, async () => {
    const errors: Simulation["errors"] = [];
    await simulate(function* ({ loop }) {
      const bad = loop.createTask((function* () {
        yield* sleep(10);
        throw "bad";
      })());
      yield* moveOnAfter(5, wait(bad));
      yield* sleep(10);
      const worse = loop.createTask(fails("worse", 3));
      const other = loop.createTask(until(worse));
      yield* moveOnAfter(0, wait(worse));
      assertEquals(yield* thrownBy(() => other.join()), "worse");
    }, { errors });
    assertEquals(errors.map(({ error }) => error), ["bad"]);
  });
}

Deno.test("K8 what main throws when its loop has come to a deadlock is reported", async () => {
  const { loop, errors } = simulation();
  await assertRejects(() =>
    loop.run((function* () {
      try {
        yield* park(new ParkingLot());
      } catch {
        throw "cleanup failed";
      }
    })()), DeadlockError);
  assertEquals(errors.map(({ error, task }) => [error, task?.name]), [["cleanup failed", "main"]]);
});

Deno.test("K8 an error in a group whose owner is gone is reported", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const owner = loop.createTask((function* () {
      taskGroup(function* (group) {
        group.createTask(fails("child", 3));
        yield* sleep(1);
      }).next(); // and no more
    })());
    yield* owner.wait();
    yield* sleep(1);
  }, { errors });
  assertEquals(errors.map(({ error }) => error), ["child"]);
});

Deno.test("K8 K16 the error of a task is reported if until(fn) has cancelled its own task meanwhile", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const bad = loop.createTask(fails("bad", 3));
    const waiter = loop.createTask(until(() => {
      currentTask().cancel();
      return bad;
    }));
    yield* waiter.wait();
    yield* sleep(1);
  }, { errors });
  assertEquals(errors.map(({ error }) => error), ["bad"]);
});

Deno.test("K13 K16 waits for a task that are cancelled leave nothing with it, and its callbacks can be taken back", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const bad = loop.createTask((function* () {
      yield* sleep(30);
      throw "bad";
    })());
    for (let i = 0; i < 100; i++) yield* moveOnAfter(0, until(bad));
    assertEquals(bad._watchers, 0);
    const calls: unknown[] = [];
    const callback = (task: Task) => calls.push(task);
    bad.addDoneCallback(callback);
    bad.addDoneCallback(callback);
    bad.removeDoneCallback(callback);
    assertEquals(bad._watchers, 1);
    bad.removeDoneCallback(() => {}); // nobody's
    bad.removeDoneCallback(callback);
    bad.removeDoneCallback(callback);
    assertEquals(bad._watchers, 0);
    yield* sleep(60);
    assertEquals(calls, []);
  }, { errors });
  assertEquals(errors.map(({ error }) => error), ["bad"]);
});

Deno.test("K8 an error that a joiner drops when the loop runs no more is reported at once", async () => {
  const there = simulation();
  const bad = there.loop.createTask(fails("bad"));
  const join = bad.join();
  join.next();
  await there.loop.runForever();
  assertEquals(there.errors, []);
  join.return(undefined as never);
  assertEquals(there.errors.map(({ error }) => error), ["bad"]);
});

Deno.test("K8 an error in a group whose owner is gone is not reported if somebody joins it", async () => {
  await simulate(function* ({ loop }) {
    let child!: Task;
    yield* loop.createTask((function* () {
      taskGroup(function* (group) {
        child = group.createTask(fails("child", 3));
        yield* sleep(1);
      }).next(); // and no more
    })()).wait();
    assertEquals(yield* thrownBy(() => child.join()), "child");
  });
});

Deno.test("K8 the first error is the cause when the end of a run fails too", async () => {
  const { loop, world } = simulation();
  const select = world.select;
  world.select = () => {
    world.select = select;
    return Promise.reject(new Error("the selector is broken"));
  };
  const error = await assertRejects(() => loop.run(shielded(park(new ParkingLot()))), DeadlockError);
  assertMatch(`${error.cause}`, /the selector is broken/);
});

Deno.test("K8 what cannot be looked at, or printed, ends its task and nothing else", async () => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const mined = Object.defineProperties(new Error("mined"), {
    cause: {
      get() {
        throw new Error("Do not look");
      },
    },
  });
  const { error: print } = console;
  const printed: unknown[][] = [];
  console.error = (...words) => {
    printed.push(words);
    if (words[1] === mined) throw new Error("it threw while it was printed");
  };
  using _ = { [Symbol.dispose]: () => console.error = print };
  for (const thrown of [proxy, mined]) {
    await simulate(function* ({ loop }) {
      const task = loop.createTask(fails(thrown, 1));
      yield* sleep(1);
      assertEquals([task.done, task.cancelled], [true, false]);
      const cleaning = loop.createTask((function* () {
        try {
          yield* sleep(1000);
        } finally {
          yield* fails(thrown);
        }
      })());
      yield* checkpoint();
      cleaning.cancel();
      yield* cleaning.wait();
      assertStrictEquals(yield* thrownBy(() => cleaning.join()), thrown);
      assertEquals([...loop.tasks].length, 1);
    }, { onError: undefined });
  }
  assertEquals(printed.filter(([, what]) => what === "it cannot be printed").length, 2);
  const lot = new ParkingLot({
    toString() {
      throw new Error("Do not look");
    },
  });
  await assertRejects(() => simulation().loop.run(park(lot)), DeadlockError);
});

Deno.test("K8 of several callbacks the one that is taken back is not called, the others are", async () => {
  await simulate(function* ({ loop }) {
    for (const gone of [0, 1, 2]) {
      const called: number[] = [];
      const task = loop.createTask(checkpoint());
      const callbacks = [0, 1, 2].map((n) => () => void called.push(n));
      for (const callback of callbacks) task.addDoneCallback(callback);
      task.removeDoneCallback(callbacks[gone]);
      yield* task.wait();
      assertEquals(called, [0, 1, 2].filter((n) => n !== gone));
    }
  });
});

Deno.test("K8 a callback that takes itself back as it is called has taken the error all the same", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask(fails(new Error("told to the callback")));
    const callback = () => task.removeDoneCallback(callback);
    task.addDoneCallback(callback);
    yield* sleep(0);
  });
});

Deno.test("K8 a callback that was called at once, as its task had ended, has taken the error, too", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask(fails(new Error("told to the callback")));
    loop.createTask((function* (): Coroutine {
      const callback = () => {};
      assert(task.done);
      task.addDoneCallback(callback);
      task.removeDoneCallback(callback);
    })());
    yield* sleep(0);
  });
});

Deno.test("K8 a callback that throws is reported, and the others are called", async () => {
  const errors: Simulation["errors"] = [];
  const error = new Error("of the callback");
  const called: Task[] = [];
  await simulate(function* ({ loop }) {
    const task = loop.createTask(checkpoint());
    task.addDoneCallback(() => {
      throw error;
    });
    task.addDoneCallback((task) => void called.push(task));
    yield* task.wait();
    assertEquals(called, [task]);
  }, { errors });
  assertEquals(errors.map((e) => [e.error, e.task]), [[error, called[0]]]);
});

Deno.test("K8 a task may throw null: that is its error, and reported", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const task = loop.createTask(fails(null));
    yield* task.wait();
    assertStrictEquals(task.error, null);
  }, { errors });
  assertEquals(errors.map((e) => e.error), [null]);
});

Deno.test("K8 what an op of a task failed with is not the task's error", async () => {
  await simulate(function* ({ loop }) {
    loop.addOp("fail", { start: (task) => loop.fail(task, new Error("of the op")), cancel() {} });
    function* failing(): Coroutine {
      yield ["fail"];
    }
    const task = loop.createTask(thrownBy(failing));
    yield* checkpoint();
    assertEquals([task.op, task.done, task.error], [null, false, undefined]);
  });
});

Deno.test("K8 an error in the first turn reaches who waits for the task beside the run", async () => {
  for (const run of [(loop: Loop) => loop.run(checkpoint()), (loop: Loop) => loop.runForever()]) {
    const { loop, errors } = simulation();
    const error = new Error("at once");
    const task = loop.createTask(fails(error));
    const [, outcome] = await Promise.allSettled([run(loop), task]);
    assertEquals([outcome, errors], [{ status: "rejected", reason: error }, []]);
  }
});

Deno.test("K8 an error whose joiner leaves in the last report of a run is reported before that settles", async () => {
  const told: string[] = [];
  const { loop } = simulation({
    onError: (error) => {
      told.push((error as Error).message);
      if (told.length === 1) joiner.return(undefined as never);
    },
  });
  const joiner = loop.createTask(fails(new Error("joined"))).join();
  joiner.next();
  loop.createTask(fails(new Error("alone")));
  await loop.run(value(1));
  assertEquals(told, ["alone", "joined"]);
});

Deno.test("K8 an error whose joiner gives up is not reported if another joins in the same step", async () => {
  await simulate(function* ({ loop }) {
    const bad = loop.createTask(fails("bad"));
    const joiner = bad.join();
    joiner.next();
    yield* bad.wait();
    joiner.return(undefined as never);
    assertEquals(yield* thrownBy(bad.join()), "bad");
  });
});

Deno.test("K8 K7 after a report no task is running, and a task made outside wakes the loop", async () => {
  const { loop, errors } = simulation();
  const seen: unknown[] = [];
  function* main(): Coroutine {
    loop.createTask(fails("bad"));
    yield* until(platformTurn().then(() => seen.push(runningLoopOrNull())));
  }
  await loop.run(main());
  assertEquals([seen, errors.length], [[null], 1]);
});

Deno.test("K8 no task is running after the report of an error that ended the run", async () => {
  const { loop, errors } = simulation();
  loop.createTask(fails("unheard of"));
  await loop.runForever();
  assertEquals([errors.length, loop.currentTask], [1, null]);
});

Deno.test("K8 K10 what main threw may be anything, also if what is left behind it is stuck", async () => {
  const { loop } = simulation();
  const mined = {
    get reason(): never {
      throw new Error("Do not look");
    },
  };
  loop.createTask(shielded(park(new ParkingLot())));
  const error = await assertRejects(() => loop.run(fails(mined)), DeadlockError);
  assertStrictEquals(error.cause, mined);
});

Deno.test("K8 onError sees the task locals of the task that has failed", async () => {
  const request = new TaskLocal("none");
  const told: [string, string][] = [];
  const { loop } = simulation({ onError: (error) => void told.push([String(error), request.get()]) });
  function* handler(name: string): Coroutine {
    request.set(name);
    yield* checkpoint();
    throw name;
  }
  await loop.run((function* () {
    loop.createTask(handler("first"));
    loop.createTask(handler("second"));
    yield* sleep(1);
    assertEquals(request.get(), "none");
  })());
  assertEquals(told, [["first", "first"], ["second", "second"]]);
  assertEquals(loop.currentTask, null);
});

// ---- K9 ----------------------------------------------------------------------------------------------------------

Deno.test("K9 run while running is an error, and does no harm", async () => {
  const { loop } = simulation();
  const result = loop.run((function* () {
    yield* sleep(10);
    return "first";
  })());
  const second = value(2);
  await assertRejects(() => loop.run(second), Error, "it is running already");
  await assertRejects(() => loop.runForever(), Error, "it is running already");
  assertEquals(await result, "first");
  assertEquals(await loop.run(second), 2);
});

Deno.test("K9 a loop can run again, after a value, an error and a deadlock", async () => {
  const { loop } = simulation();
  assertEquals(await loop.run(value(1)), 1);
  await assertRejects(() => loop.run(fails(new Error("x"))), Error, "x");
  await assertRejects(() => loop.run(park(new ParkingLot())), DeadlockError);
  await loop.runForever();
  assertEquals(
    await loop.run((function* () {
      yield* sleep(1);
      return 2;
    })()),
    2,
  );
});

Deno.test("K9 two loops run side by side, and each task knows its own", async () => {
  const [a, b] = [simulation().loop, simulation().loop];
  function* work(loop: Loop): Coroutine<boolean> {
    let right = true;
    for (let i = 0; i < 50; i++) {
      right &&= runningLoop() === loop && currentTask().loop === loop && loop.currentTask === currentTask();
      yield* i % 3 ? checkpoint() : sleep(1);
    }
    return right;
  }
  assertEquals(await Promise.all([a.run(work(a)), b.run(work(b))]), [true, true]);
});

Deno.test("K9 two loops that run at once cannot share a selector; one after the other they can", async () => {
  const { loop, world } = simulation();
  const other = new Loop({ clock: world, selector: world });
  const result = loop.run(sleep(1));
  await assertRejects(() => other.run(value(1)), Error, "another one that is running has the same selector");
  await assertRejects(() => other.runForever(), Error, "the same selector");
  await result;
  assertEquals(await other.run(value(1)), 1);
  assertEquals(await loop.run(value(2)), 2);
});

Deno.test("K9 who waits for a socket in a stopped loop is woken in it, though another has its selector by then", async () => {
  const { loop, world } = simulation();
  const other = new Loop({ clock: world, selector: world });
  const [sock, closed] = [new FakeSocket(), Object.assign(new FakeSocket(), { closed: false })];
  function* stops(): Coroutine {
    yield* sleep(1);
    loop.stop();
  }
  const waiting = loop.createTask(where(readWait(sock)));
  const failing = loop.createTask(where(readWait(closed)));
  loop.createTask(stops());
  await loop.runForever();
  sock.ready = EVENT_READ;
  closed.closed = true;
  closed.ready = EVENT_READ;
  await other.run(sleep(1));
  assertEquals([...loop.tasks].length, 2);
  await loop.runForever();
  assertStrictEquals(waiting.result(), loop);
  assertInstanceOf(failing.error, ClosedError);
});

/** The loop that `coro` was woken in. */
function* where(coro: Coroutine): Coroutine<Loop> {
  yield* coro;
  return runningLoop();
}

Deno.test("K9 a task can run another loop, and stays in its own", async () => {
  await simulate(function* ({ loop }) {
    const { loop: inner } = simulation();
    function* main(): Coroutine<Loop> {
      yield* checkpoint();
      return runningLoop();
    }
    const me = currentTask();
    const promise = inner.run(main());
    assertStrictEquals(runningLoop(), loop);
    assertStrictEquals(currentTask(), me);
    assertStrictEquals(yield* until(promise), inner);
    assertStrictEquals(runningLoop(), loop);
  });
  assertThrows(() => runningLoop(), Error, "not called by a task");
  assertThrows(() => currentTask(), Error, "no task is running");
});

Deno.test("K9 a loop whose end was a deadlock can run again, and who is left stays cancelled", async () => {
  const { loop } = simulation();
  const lot = new ParkingLot();
  await assertRejects(() => loop.run(shielded(park(lot))), DeadlockError);
  assertEquals([...loop.tasks].length, 1);
  lot.unpark();
  assertEquals(
    await loop.run((function* () {
      yield* sleep(1);
      return [...loop.tasks].length;
    })()),
    1,
  );
});

Deno.test("K9 N15 a promise given to a run that is refused is heard", async () => {
  const { loop } = simulation();
  const rejecting = () => until(Promise.reject(new Error("unheard")));
  const running = loop.run(sleep(1));
  await assertRejects(() => loop.run(rejecting()), Error, "it is running already");
  await running;
  await assertRejects(() => loop.run(rejecting(), { signal: 5 as never }), TypeError, "the signal 5");
  await platformTurn();
});

Deno.test("K9 a coroutine made by hand that gives no result is an error of its task, and the run ends", async () => {
  const { loop, errors } = simulation();
  const byHand = (next: () => unknown) => ({ next, [Symbol.toStringTag]: "Generator" }) as unknown as Coroutine;
  const valueless = {
    done: true,
    get value(): unknown {
      throw new TypeError("no value");
    },
  };
  function* main(): Coroutine<string> {
    loop.createTask(byHand(() => {}));
    loop.createTask(byHand(() => valueless));
    yield* sleep(1);
    return "done";
  }
  assertEquals(await loop.run(main()), "done");
  assertEquals(errors.map(({ error }) => error instanceof TypeError), [true, true]);
});

// ---- K10 ---------------------------------------------------------------------------------------------------------

for (const way of ["value", "error", "cancel"]) {
  Deno.test(`K10 run leaves nothing behind when main ends by ${way}`, async () => {
    const { loop, errors } = simulation();
    const log: string[] = [];
    function* worker(name: string): Coroutine {
      try {
        yield* sleep(1e6);
      } finally {
        yield* shielded(sleep(50));
        log.push(name);
        // One that is born now is cancelled, too.
        if (name === "a") loop.createTask(worker("child of a"));
      }
    }
    const abort = new AbortController();
    function* main(): Coroutine<string> {
      loop.createTask(worker("a"));
      loop.createTask(worker("b"));
      yield* sleep(1);
      if (way === "error") throw new Error("end");
      if (way === "cancel") abort.abort("end");
      yield* checkpoint();
      return "end";
    }
    const settled = await loop.run(main(), { signal: abort.signal }).catch((error) => {
      assertEquals(error instanceof Cancelled, way === "cancel");
      return error.reason ?? error.message;
    });
    assertEquals(settled, "end");
    assertEquals(log, ["a", "b", "child of a"]);
    assertEquals([...loop.tasks], []);
    assertEquals(errors, []);
  });
}

Deno.test("K10 a stop() during the cleanup does not cut it short, nor spoil the next run", async () => {
  const { loop } = simulation();
  const log: string[] = [];
  function* worker(): Coroutine {
    try {
      yield* sleep(1e6);
    } finally {
      loop.stop();
      yield* shielded(sleep(5));
      log.push("cleaned up");
    }
  }
  function* main(): Coroutine<number> {
    loop.createTask(worker());
    yield* checkpoint();
    return 1;
  }
  assertEquals(await loop.run(main()), 1);
  assertEquals(log, ["cleaned up"]);
  assertEquals(
    await loop.run((function* () {
      yield* sleep(1);
      return 2;
    })()),
    2,
  );
});

Deno.test("K10 a task that outlives the shielded block it was put into ends with the run", async () => {
  await simulate(function* ({ loop }) {
    let scope!: CancelScope;
    const task = yield* cancelScope(function* (own) {
      scope = own;
      const task = loop.createTask(sleep(Infinity), { scope: own });
      yield* checkpoint();
      return task;
    }, { shield: true });
    scope.shield = true; // too late: its block has ended
    assertEquals([scope.shield, task?.done], [false, false]);
  });
});

Deno.test("K10 K16 run refuses what is not an AbortSignal, and leaves no task behind", async () => {
  const { loop } = simulation();
  for (const signal of [{}, new AbortController(), null]) {
    await assertRejects(
      () => loop.run(fails("ghost"), { signal: signal as AbortSignal }),
      TypeError,
      "Cannot run with the signal",
    );
  }
  assertEquals([...loop.tasks], []);
  assertEquals(await loop.run(value(1)), 1);
});

Deno.test("K10 K13 a block whose deadline cannot be set leaves no scope behind", async () => {
  const { loop, world } = simulation();
  await loop.run((function* () {
    const { now } = world;
    let before = 0;
    const added = yield* cancelScope(function* (scope) {
      before = [...scope._walk()].length;
      for (let i = 0; i < 3; i++) {
        world.now = () => {
          throw new Error("the clock is broken");
        };
        assertMatch(`${yield* thrownBy(() => moveOnAfter(5, sleep(1)))}`, /the clock is broken/);
        world.now = now;
      }
      yield* checkpoint();
      return [...scope._walk()].length - before;
    });
    assertEquals(added, 0);
  })());
});

Deno.test("K10 blocks that a task has entered and never left leave no timer behind", async () => {
  const { loop } = simulation();
  await loop.run((function* () {
    cancelScope(() => sleep(1), { timeout: 1000 }).next(); // and no more
    yield* checkpoint();
  })());
  assertEquals(loop._timers.length, 0);
});

Deno.test("K10 K13 blocks that tasks outlive, each in the one before, overflow no stack when they go", async () => {
  await simulate(function* ({ loop }) {
    let n = 0;
    function* generation(): Coroutine {
      yield* cancelScope(function* (scope) {
        if (++n < 20_000) loop.createTask(generation(), { scope });
      });
    }
    loop.createTask(generation());
    while (n < 20_000) yield* checkpoint();
    yield* sleep(1);
    assertEquals([...loop.tasks].length, 1);
  });
});

Deno.test("K10 a shield ends with its block, also for a task that outlives it", async () => {
  const { loop } = simulation();
  let task!: Task;
  await loop.run(cancelScope(function* (own) {
    task = loop.createTask(sleep(Infinity), { scope: own });
    yield* checkpoint();
  }, { shield: true }));
  assertEquals([task.cancelled, [...loop.tasks]], [true, []]);
});

// ---- K11 ---------------------------------------------------------------------------------------------------------

Deno.test("K11 a deadlock is told, with every task and what it waits on", async () => {
  const { loop } = simulation();
  function* main(): Coroutine {
    const tasks: Task[] = [];
    function* waitsFor(other: number): Coroutine {
      yield* tasks[other].join();
    }
    tasks.push(loop.createTask(waitsFor(1), { name: "anna" }), loop.createTask(waitsFor(0), { name: "bert" }));
    yield* park(new ParkingLot("a miracle"));
  }
  const error = await assertRejects(() => loop.run(main()), DeadlockError);
  assertEquals(error.tasks.map((task) => task.name).sort(), ["anna", "bert", "main"]);
  for (const words of ["anna", "bert", "main", "a miracle"]) assertStringIncludes(error.message, words);
  assertEquals(loop.time() <= 2000, true);
});

Deno.test("K11 runForever tells a deadlock, too", async () => {
  const { loop } = simulation();
  loop.createTask(park(new ParkingLot("godot")), { name: "estragon" });
  const error = await assertRejects(() => loop.runForever(), DeadlockError, "estragon");
  assertEquals(error.tasks.map((task) => task.op?.[0]), ["park"]);
  assertEquals(runningLoopOrNull(), null);
});

Deno.test("K11 a task that is made as soon as a run has begun is no sign of life", async () => {
  for (const begin of ["run", "runForever"] as const) {
    const { loop } = simulation();
    const stuck = begin === "run" ? loop.run(park(new ParkingLot())) : loop.runForever();
    loop.createTask(park(new ParkingLot()));
    await assertRejects(() => stuck, DeadlockError);
  }
});

Deno.test("K11 a timer, a socket, a promise or a signal to abort may still help", async () => {
  const sock = new FakeSocket();
  for (const rescue of ["timer", "socket", "promise", "abort"]) {
    const { loop } = simulation();
    const lot = new ParkingLot("rescue");
    const late = Promise.withResolvers<void>();
    const abort = new AbortController();
    function* rescuer(): Coroutine {
      if (rescue === "timer") yield* sleep(1e7);
      if (rescue === "socket") yield* readWait(sock);
      if (rescue === "promise") yield* until(late.promise);
      lot.unpark();
    }
    function* main(): Coroutine {
      if (rescue !== "abort") loop.createTask(rescuer());
      yield* park(lot);
    }
    const result = loop.run(main(), rescue === "abort" ? { signal: abort.signal } : {});
    for (let i = 0; i < 20; i++) await platformTurn();
    sock.ready = 1;
    if (rescue === "socket") (loop.selector.wakeup!)();
    late.resolve();
    abort.abort("rescued");
    if (rescue === "abort") assertEquals((await assertRejects(() => result, Cancelled)).reason, "rescued");
    else await result;
  }
});

Deno.test("K11 a cancel, a deadline or an unpark from outside counts as a sign of life", async () => {
  for (const sign of ["cancel", "deadline", "unpark"]) {
    const { loop, world } = simulation();
    world.autojump = false;
    const lot = new ParkingLot("rescue");
    const outside = new ParkingLot("outside");
    let scope!: CancelScope;
    const other = loop.createTask(cancelScope(function* (own) {
      scope = own;
      yield* park(outside);
      yield* park(new ParkingLot());
    }));
    const running = loop.run(park(lot));
    await platformTurn();
    world.advance(500);
    await platformTurn();
    if (sign === "cancel") other.cancel();
    else if (sign === "deadline") scope.deadline = 1e9;
    else outside.unpark();
    for (let i = 0; i < 5; i++) {
      await platformTurn();
      world.advance(800);
    }
    lot.unpark();
    await running;
  }
});

Deno.test("K11 who joins a task of another loop is woken from outside", async () => {
  for (const wait of [(task: Task) => task.join(), (task: Task) => task.wait()]) {
    const there = simulation();
    const here = simulation();
    there.world.autojump = false;
    const task = there.loop.createTask(sleep(1500));
    const other = there.loop.runForever();
    const joined = here.loop.run(wait(task));
    for (let i = 0; i < 20; i++) await platformTurn(); // the clock of this loop goes as far as it likes
    there.world.advance(1500);
    await joined;
    await other;
  }
});

Deno.test("K11 K12 who waits for a task of another loop is no deadlock in a run after a stop(), either", async () => {
  const there = simulation();
  const here = simulation();
  there.world.autojump = false;
  const task = there.loop.createTask(sleep(1500));
  const other = there.loop.runForever();
  const waiter = here.loop.createTask(task.join());
  here.loop.createTask((function* () {
    yield* sleep(5);
    here.loop.stop();
  })());
  await here.loop.runForever();
  const joined = here.loop.run(waiter.join());
  for (let i = 0; i < 20; i++) await platformTurn();
  there.world.advance(1500);
  await joined;
  await other;
  await assertRejects(() => here.loop.run(park(new ParkingLot())), DeadlockError);
});

Deno.test("K11 who starts a task in a group of another loop is woken from outside", async () => {
  const there = simulation();
  const here = simulation();
  there.world.autojump = false;
  let group!: TaskGroup;
  const other = there.loop.run(taskGroup(function* (own) {
    group = own;
    yield* sleep(1700);
  }));
  await platformTurn();
  const started = here.loop.run(group.start(function* (started: (value: number) => void) {
    yield* sleep(1500);
    started(7);
  }));
  for (let i = 0; i < 20; i++) await platformTurn();
  there.world.advance(1500);
  assertEquals(await started, 7);
  there.world.advance(200);
  await other;
});

Deno.test("K11 a DeadlockError has the ops, though run has ended the tasks by then", async () => {
  const { loop } = simulation();
  const lot = new ParkingLot("godot");
  const error = await assertRejects(() => loop.run(park(lot)), DeadlockError);
  assertEquals([error.tasks.map((task) => task.done), error.ops], [[true], [["park", lot]]]);
});

Deno.test("K11 a DeadlockError of many tasks names the first of them, and counts the rest", async () => {
  const { loop } = simulation();
  for (const [children, end] of [[19, "ParkingLot)"], [20, ", and 1 more"], [30, ", and 11 more"]] as const) {
    const error = await assertRejects(
      () => loop.run(all(Array.from({ length: children }, () => park(new ParkingLot())))),
      DeadlockError,
    );
    assertEquals([error.tasks.length, error.ops.length], [children + 1, children + 1]);
    assertEquals([error.message.match(/waits for/g)!.length, error.message.slice(-end.length)], [20, end]);
    assertStringIncludes(error.message, `nothing can wake ${error.tasks[0]} (waits for`);
  }
});

for (const kind of ["with", "without"]) {
  Deno.test(`K11 a selector ${kind} wakeup may wake a task while it is asked`, async () => {
    const lot = new ParkingLot("the selector");
    const { loop, world } = simulation();
    const selector: Selector = {
      register: (...args) => world.register(...args),
      unregister: (...args) => world.unregister(...args),
      select(timeout) {
        if (timeout !== 0) lot.unpark();
        return world.select(timeout);
      },
      close: () => world.close(),
    };
    if (kind === "with") selector.wakeup = () => world.wakeup();
    const own = new Loop({ selector, clock: world, onError: loop._report.bind(loop) });
    own.createTask(sleep(1000));
    assertEquals(
      await own.run((function* () {
        yield* park(lot);
        return own.time();
      })()),
      0,
    );
  });
}

Deno.test("K11 what onError does is no sign of life, nor is a task of another loop that has ended", async () => {
  const { loop } = simulation({
    onError: () => loop.createTask(value(1)), // a supervisor
  });
  loop.createTask(fails("bad"));
  await assertRejects(() => loop.run(park(new ParkingLot())), DeadlockError);

  const there = simulation();
  const ended = there.loop.createTask(value(1));
  await there.loop.runForever();
  await assertRejects(
    () =>
      simulation().loop.run((function* () {
        yield* ended.join();
        yield* park(new ParkingLot());
      })()),
    DeadlockError,
  );
});

Deno.test("K11 a signal that has aborted, or whose main has ended, helps nobody any more", async () => {
  const aborted = AbortSignal.abort("too late");
  const { loop } = simulation();
  await assertRejects(() => loop.run(shielded(park(new ParkingLot())), { signal: aborted }), DeadlockError);
  const { signal } = new AbortController();
  const other = simulation();
  other.loop.createTask(shielded(park(new ParkingLot())));
  await assertRejects(() => other.loop.run(sleep(1), { signal }), DeadlockError);
});

Deno.test("K11 on a clock that stands still a deadlock is told all the same", async () => {
  const { loop, world } = simulation({ clock: { now: () => 0 } });
  const select = world.select.bind(world);
  let selects = 0;
  world.select = (timeout?: number) => {
    if (++selects > 10) throw new Error("The loop waits for ever");
    return select(timeout);
  };
  await assertRejects(() => loop.run(park(new ParkingLot())), DeadlockError);
});

Deno.test("K11 a deadlock is told at a time that rounds, too", async () => {
  const { loop } = simulation();
  function* main(): Coroutine {
    yield* sleep(24.1); // 24.1 + 1000 - 24.1 is a little less than 1000.
    yield* park(new ParkingLot());
  }
  await assertRejects(() => loop.run(main()), DeadlockError);
});

Deno.test("K11 a DeadlockError says in words what each op waits for, whatever its arguments are", async () => {
  const { loop } = simulation();
  const lot = new ParkingLot("a letter");
  function* odd(): Coroutine {
    yield [
      "park",
      lot,
      5,
      null,
      undefined,
      "text",
      {},
      { id: 0 },
      { id: "x" },
      Object.create(null),
      Math.max,
      () => {},
    ];
  }
  const reader = loop.createTask(park(lot));
  loop.createTask(until(reader));
  const error = await assertRejects(() => loop.run(odd()), DeadlockError);
  assertStringIncludes(error.message, "task 1 (waits for park a letter)");
  assertStringIncludes(error.message, "task 2 (waits for until Task 1)");
  assertStringIncludes(
    error.message,
    "(waits for park a letter 5 null undefined text Object Object 0 Object Object max function)",
  );
});

Deno.test("K11 K12 a stop() from outside is no deadlock, though nothing could have woken the tasks", async () => {
  const { loop } = simulation();
  const task = loop.createTask(park(new ParkingLot()));
  setImmediate(() => loop.stop());
  await loop.runForever();
  assertEquals([...loop.tasks], [task]);
});

Deno.test("K11 a deadline from outside is a sign of life, also when no time has passed", async () => {
  const { loop } = simulation();
  let scope!: CancelScope;
  const running = loop.run(cancelScope(function* (own) {
    scope = own;
    yield* park(new ParkingLot());
  }));
  setImmediate(() => scope.deadline = 10);
  await running;
  assertEquals([scope.cancelledCaught, loop.time()], [true, 10]);
});

Deno.test("K11 the cleanup after a deadlock has a grace of its own", async () => {
  const { loop } = simulation();
  function* stuckTwice(): Coroutine {
    try {
      yield* park(new ParkingLot());
    } finally {
      yield* shielded(park(new ParkingLot()));
    }
  }
  await assertRejects(() => loop.run(stuckTwice()), DeadlockError);
  assertEquals(loop.time(), 2000);
});

Deno.test("K11 a deadline of Infinity, or one set when the scope was cancelled, hides no deadlock", async () => {
  const { loop } = simulation();
  function* never(scope: CancelScope): Coroutine {
    scope.deadline = 5;
    scope.deadline = Infinity;
    yield* park(new ParkingLot());
  }
  await assertRejects(() => loop.run(cancelScope(never)), DeadlockError);
  assertEquals(loop.time(), 1000);
  function* late(scope: CancelScope): Coroutine {
    scope.cancel();
    scope.deadline = loop.time() + 10_000;
    yield* shielded(park(new ParkingLot()));
  }
  await assertRejects(() => loop.run(cancelScope(late)), DeadlockError);
  assert(loop.time() < 10_000);
});

Deno.test("K11 what another loop's task gives to until() counts as help from outside", async () => {
  const { loop } = simulation();
  const other = simulation().loop;
  const [lot, task] = [new ParkingLot(), other.createTask(checkpoint())];
  const result = loop.run((function* (): Coroutine {
    yield* until(task);
    yield* park(lot);
  })());
  await platformTurn();
  await other.runForever();
  for (let i = 0; i < 20; i++) await platformTurn();
  lot.unpark();
  await result;
});

Deno.test("K11 K12 a run that goes on where another was stuck has a grace of its own", async () => {
  const { loop } = simulation();
  loop.createTask(park(new ParkingLot("godot")));
  await assertRejects(() => loop.runForever(), DeadlockError);
  assertEquals(loop.time(), 1000);
  await assertRejects(() => loop.runForever(), DeadlockError);
  assertEquals(loop.time(), 2000);
});

Deno.test("K11 a task of a loop that does not run does not cut short the grace of one with its selector", async () => {
  const { loop, world } = simulation();
  const other = new Loop({ selector: world, clock: world });
  const stuck = loop.run(park(new ParkingLot()));
  await platformTurn();
  other.createTask(value(1));
  await assertRejects(() => stuck, DeadlockError);
  assertEquals(loop.time(), 1000);
});

Deno.test("K11 an event that no task waits for does not cut the grace short", async () => {
  const { loop } = simulation();
  function* main(): Coroutine {
    const sock = new FakeSocket();
    sock.ready = EVENT_READ;
    loop.selector.register(sock, EVENT_READ, null);
    yield* park(new ParkingLot());
  }
  await assertRejects(() => loop.run(main()), DeadlockError);
  assertEquals(loop.time(), 1000);
});

// ---- K12 ---------------------------------------------------------------------------------------------------------

Deno.test("K12 runForever resolves when the last task has ended", async () => {
  const { loop, world } = simulation();
  await loop.runForever();
  loop.createTask(sleep(10));
  loop.createTask(sleep(30));
  await loop.runForever();
  assertEquals(world.now(), 30);
});

Deno.test("K12 stop leaves tasks as they are, and a later run goes on with them", async () => {
  const { loop, world } = simulation();
  const log: string[] = [];
  function* worker(): Coroutine {
    log.push("begins");
    yield* sleep(10);
    loop.stop();
    yield* sleep(10);
    log.push("ends");
  }
  const task = loop.createTask(worker());
  await loop.runForever();
  assertEquals([log.length, task.done, world.now()], [1, false, 10]);
  await loop.runForever();
  assertEquals([log.length, task.done, world.now()], [2, true, 20]);
});

Deno.test("K2 K12 stop lets the band under way end, and what it made ready goes on in a later run, in order", async () => {
  const { loop } = simulation();
  const log: string[] = [];
  function* stopper(): Coroutine {
    loop.stop();
    yield* says(log, "stopper", 1);
  }
  loop.createTask(says(log, "a", 2));
  loop.createTask(stopper());
  loop.createTask(says(log, "b", 2));
  await loop.runForever();
  assertEquals(log, ["a1", "stopper1", "b1"]);
  await loop.runForever();
  assertEquals(log, ["a1", "stopper1", "b1", "a2", "b2"]);
});

Deno.test("K12 stop from outside ends an idle loop", async () => {
  for (const loop of [simulation().loop, new Loop()]) {
    const task = loop.createTask(until(new Promise(() => {})));
    const result = loop.runForever();
    await platformTurn();
    loop.stop();
    await result;
    assertEquals(task.done, false);
  }
});

Deno.test("K12 a main that was stopped goes on later, and its error is then reported", async () => {
  const { loop, errors } = simulation();
  function* main(): Coroutine {
    loop.stop();
    yield* checkpoint();
    throw new Error("later");
  }
  function* mistaken(): Coroutine {
    loop.stop();
    yield ["no such op"]; // What it will be thrown is there already.
  }
  for (const stopped of [main(), mistaken()]) {
    await assertRejects(() => loop.run(stopped), Error, "the loop was stopped first");
    await loop.runForever();
  }
  assertEquals(errors.map((e) => (e.error as Error).name), ["Error", "TypeError"]);
});

// ---- K13 ---------------------------------------------------------------------------------------------------------

Deno.test("K13 a hundred thousand tasks leave nothing behind", async () => {
  const { loop, world } = simulation({ trace: undefined });
  let ended = 0;
  function* one(): Coroutine {
    yield* checkpoint();
    ended++;
  }
  await loop.run((function* () {
    for (let batch = 0; batch < 10; batch++) {
      for (let i = 0; i < 10_000; i++) loop.createTask(one());
      yield* sleep(1);
    }
    assertEquals([...loop.tasks].length, 1);
    // In the tree of scopes there are the root and this task.
    assertEquals([...currentTask()._parent._walk()].length, 2);
  })());
  assertEquals(ended, 100_000);
  assertEquals([...loop.tasks], []);
  assertEquals([loop.ready.length, world.keys.size], [0, 0]);
});

Deno.test("K13 blocks that were left long ago go when the tasks that outlived them have ended", async () => {
  await simulate(function* ({ loop }) {
    for (let i = 0; i < 3; i++) {
      yield* cancelScope(function* (outer) {
        yield* cancelScope(function* (inner) {
          loop.createTask(sleep(5), { scope: inner });
          loop.createTask(sleep(9), { scope: outer });
        });
      });
      yield* sleep(10);
      assertEquals([...currentTask()._parent._walk()].length, 2); // the root and this task
    }
  });
});

Deno.test("K13 K9 a loop that runs again and again keeps nothing of its runs", async () => {
  const { loop } = simulation();
  for (let i = 0; i < 3; i++) {
    await loop.run((function* () {
      assertEquals([...currentTask()._parent._walk()].length, 2); // the root and this task
      yield* checkpoint();
    })());
  }
});

Deno.test("K13 K8 a loop keeps nothing of tasks that have failed", needs({ run: true }), async () => {
  const program = `
    const loop = new Loop({ onError() {} });
    await loop.run(function* () {
      const heap = [];
      for (let i = 0; i <= 20000; i++) {
        if (i % 10000 === 0) heap.push(used());
        loop.createTask(function* () { throw 1; }());
        yield* checkpoint();
      }
      console.log(heap[2] - heap[1] < 1e6 ? "little" : heap);
    }());`;
  assertEquals(await runWithGc("checkpoint, Loop", program), "little\n");
});

Deno.test("K13 a task that ends lets go of its coroutine", async () => {
  await simulate(function* ({ loop }) {
    const ways = [value(1), fails(new Error("x")), sleep(1e6)];
    const tasks = ways.map((coro) => loop.createTask(coro as Coroutine));
    const joins = tasks.map((task) => thrownBy(() => task.join()));
    loop.createTask(joins[1]);
    yield* checkpoint();
    tasks[2].cancel();
    for (const task of tasks) yield* task.wait();
    assertEquals(tasks.map((task) => task._coro), [null, null, null]);
  });
});

Deno.test("K13 a hundred thousand ops in a row overflow no stack", async () => {
  assertEquals(
    await simulate(function* ({ loop }) {
      let sum = 0;
      for (let i = 0; i < 100_000; i++) {
        if (i % 3 === 0) yield* checkpoint();
        else if (i % 3 === 1) yield* sleep(0);
        else sum += yield* loop.createTask(value(1)).join();
      }
      return sum;
    }),
    33_333,
  );
});

Deno.test("K13 ten thousand tasks, each started by the one before, overflow no stack", async () => {
  await simulate(function* ({ loop }) {
    function* nested(depth: number): Coroutine<number> {
      if (depth === 0) return [...loop.tasks].length;
      return yield* loop.createTask(nested(depth - 1)).join();
    }
    assertEquals(yield* nested(10_000), 10_001);
  });
});

Deno.test("K13 T1 a task whose timeouts pass again and again keeps nothing of them", needs({ run: true }), async () => {
  const program = `
    await new Loop().run(function* () {
      const heap = [];
      for (let i = 0; i <= 20000; i++) {
        if (i % 10000 === 0) heap.push(used());
        yield* moveOnAfter(0, sleep(1));
      }
      console.log(heap[2] - heap[1] < 1e6 ? "little" : heap);
    }());`;
  assertEquals(await runWithGc("Loop, moveOnAfter, sleep", program), "little\n");
});

// ---- K14 ---------------------------------------------------------------------------------------------------------

Deno.test("K14 a coroutine stepped by hand yields exactly the documented ops", () => {
  const { loop } = simulation();
  const sock = new FakeSocket() as any;
  const lot = new ParkingLot<string>();
  const promise = Promise.resolve();
  sock.recv = () => new Uint8Array(3);
  sock.recvInto = () => 3;
  sock.send = (data: Uint8Array) => Math.min(data.length, 2);
  sock.accept = () => [sock, { transport: "tcp", hostname: "h", port: 1 }];
  /** Answers each op with undefined; its ops, and what it returns. */
  function steps(coro: Coroutine<any>): [ops: unknown[], result: unknown] {
    const ops: unknown[] = [];
    for (;;) {
      const { value, done } = coro.next();
      if (done) return [ops, value];
      ops.push(value);
    }
  }
  assertEquals(steps(readWait(sock)), [[["read_wait", sock]], undefined]);
  assertEquals(steps(writeWait(sock)), [[["write_wait", sock]], undefined]);
  assertEquals(steps(sleep(10)), [[["sleep", 10]], undefined]);
  assertEquals(steps(checkpoint()), [[["checkpoint"]], undefined]);
  assertEquals(steps(park(lot)), [[["park", lot]], undefined]);
  assertEquals(steps(until(promise)), [[["until", promise]], undefined]);
  assertEquals(steps(loop.sockRecv(sock, 10)), [[["read_wait", sock]], new Uint8Array(3)]);
  assertEquals(steps(loop.sockRecvInto(sock, new Uint8Array(3))), [[["read_wait", sock]], 3]);
  assertEquals(steps(loop.sockAccept(sock))[0], [["read_wait", sock]]);
  assertEquals(steps(loop.sockSendall(sock, new Uint8Array(3))), [
    [["write_wait", sock], ["write_wait", sock]],
    undefined,
  ]);
  assertEquals(steps(loop.sockSendall(sock, new Uint8Array(0))), [[["write_wait", sock]], undefined]);
});

Deno.test("K14 by hand, join waits once, and whichever way it ends it is over", async () => {
  const loop = new Loop();
  const seven = loop.createTask((function* () {
    yield* checkpoint();
    return 7;
  })());
  const parked = () => {
    const coro = seven.join();
    assertEquals((coro.next().value as unknown as Op)[0], "park");
    return coro;
  };
  const over = { value: undefined as unknown as number, done: true } as const;

  const thrown = parked();
  assertThrows(() => thrown.throw(new Error("enough")), Error, "enough");
  assertEquals(thrown.next(), over);

  const returned = parked();
  assertEquals(returned.return(8), { value: 8, done: true });
  assertEquals(returned.next(), over);

  const hasty = parked();
  assertThrows(() => hasty.next(), TaskError, "it has not ended");
  assertEquals(hasty.next(), over);

  const unused = seven.join();
  assertThrows(() => unused.throw(new Error("never")), Error, "never");
  assertEquals(unused.next(), over);

  await loop.run(seven.wait());
  const late = seven.join();
  assertEquals(late.next(), { value: ["checkpoint"], done: false });
  assertEquals(late.next(), { value: 7, done: true });
  assertEquals(late.next(), over);
});

Deno.test("K8 a joiner that was told to return leaves the error to be reported", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const task = loop.createTask(fails(new Error("nobody hears me")));
    const joiner = task.join();
    joiner.next();
    joiner.return(undefined as never);
    yield* task.wait();
  }, { errors });
  assertEquals(errors.map((e) => String(e.error)), ["Error: nobody hears me"]);
});

Deno.test("K14 by hand, an op hands on what it is answered, thrown or told to return", () => {
  function* twice(lot: ParkingLot<number>): Coroutine<number> {
    const first = yield* park(lot);
    try {
      return first + (yield* park(lot));
    } catch (error) {
      return first + (error as number);
    }
  }
  const lot = new ParkingLot<number>();
  const answered = twice(lot);
  answered.next();
  answered.next(1);
  const last = answered.next(2);
  assertEquals([last.done, last.value], [true, 3]);
  const thrown = twice(lot);
  thrown.next();
  thrown.next(1);
  const caught = thrown.throw(10);
  assertEquals([caught.done, caught.value], [true, 11]);
  const op = park(lot);
  op.next();
  const returned = op.return(7);
  assertEquals([returned.done, returned.value], [true, 7]);
  assertEquals(op.next().done, true);
  assertThrows(() => park(lot).throw(new Error("early")), Error, "early");
});

Deno.test("K14 by hand, an op that was told to return or thrown before its first step is over", () => {
  const returned = checkpoint();
  returned.return();
  assertEquals(returned.next().done, true);
  const thrown = checkpoint();
  assertThrows(() => thrown.throw(new Error("early")), Error, "early");
  assertEquals(thrown.next().done, true);
});

Deno.test("K14 by hand, a join that never began takes no charge of the error from others", async () => {
  await simulate(function* ({ loop }) {
    const error = new Error("joined for");
    const task = loop.createTask(fails(error, 1));
    task.join().return(undefined as never);
    assertStrictEquals(yield* thrownBy(task.join()), error);
  });
});

// ---- K15 ---------------------------------------------------------------------------------------------------------

Deno.test("K15 a traced op, a Cancelled and a DeadlockError print in a few lines, without the insides of the loop", async () => {
  const [sock, peer] = socketPair();
  const shown: string[] = [];
  const loop = new Loop({ trace: (event) => shown.push(Deno.inspect(event, { colors: false })) });
  const task = loop.createTask(readWait(sock), { name: "reader" });
  await loop.run((function* () {
    yield* checkpoint();
    task.cancel("enough");
    yield* moveOnAfter(0, park(new ParkingLot("an answer")));
    yield* task.wait();
  })());
  const error = await task.then(() => null, (error) => error);
  for (const thing of [task, sock, error, new DeadlockError([task])]) {
    shown.push(Deno.inspect(thing, { colors: false }));
  }
  sock.close();
  peer.close();
  assertStringIncludes(shown[0], 'task 1 "reader"');
  assertStringIncludes(shown[0], `socket ${sock.id}`);
  assertStringIncludes(shown.join("\n"), "args: [ an answer ]");
  assertEquals([String(error), error.cause.message], [
    'TaskError: Cannot join task 1 "reader": it was cancelled',
    "The task was cancelled: enough",
  ]);
  for (const text of shown) assert(!/^\s*_\w+: |\bLoop \{/m.test(text), text);
});

Deno.test("K15 what a trace is told can be written down as JSON", async () => {
  const [sock, peer] = socketPair();
  const shown: string[] = [];
  const { loop } = simulation({ trace: ({ task, op, args }) => shown.push(JSON.stringify({ task, op, args })) });
  const reader = loop.createTask(readWait(sock), { name: "reader" });
  await loop.run((function* () {
    yield* moveOnAfter(1, park(new ParkingLot("an answer")));
    reader.cancel();
  })());
  for (const end of [sock, peer]) end.close();
  assertEquals(shown, [
    `{"task":"task 1 \\"reader\\"","op":"read_wait","args":["socket ${sock.id}"]}`,
    '{"task":"task 2 \\"main\\"","op":"park","args":["an answer"]}',
  ]);
});

Deno.test("K15 trace sees every op of every task, in order, with task, op, args and time", async () => {
  const { loop, trace } = simulation();
  const sock = new FakeSocket();
  sock.ready = 3;
  function* child(): Coroutine {
    yield* sleep(5);
    yield* readWait(sock);
    yield ["nonsense", 1, 2] as Op;
  }
  await loop.run((function* () {
    const task = loop.createTask(child(), { name: "child" });
    yield* checkpoint();
    yield* thrownBy(() => task.join());
  })());
  assertEquals(trace.map(({ task, op, args, time }) => [task.name, op, args.length, time]), [
    ["main", "checkpoint", 0, 0],
    ["child", "sleep", 1, 0],
    ["main", "park", 1, 0],
    ["child", "read_wait", 1, 5],
    ["child", "nonsense", 2, 5],
  ]);
  assertEquals(trace[1].args, [5]);
  assertStrictEquals(trace[3].args[0], sock);
  assertEquals(trace[4].args, [1, 2]);
});

// ---- K16 ---------------------------------------------------------------------------------------------------------

Deno.test("K16 until gives the value or throws the very error, settled before or later", async () => {
  await simulate(function* ({ loop }) {
    const error = new Error("rejected");
    assertEquals(yield* until(Promise.resolve(1)), 1);
    assertEquals(yield* until(platformTurn().then(() => 2)), 2);
    assertEquals(yield* until(() => Promise.resolve(3)), 3);
    assertStrictEquals(yield* thrownBy(() => until(Promise.reject(error))), error);
    assertStrictEquals(yield* thrownBy(() => until(platformTurn().then(() => Promise.reject(error)))), error);
    assertStrictEquals(
      yield* thrownBy(() =>
        until(() => {
          throw error;
        })
      ),
      error,
    );
    assertEquals(yield* until(loop.createTask(value(4))), 4);
    for (const wrong of [1, undefined, null, {}, () => 1, Object.create(null)] as any[]) {
      const error = yield* thrownBy(() => until(wrong));
      assertInstanceOf(error, TypeError);
      assertStringIncludes(error.message, "Cannot wait until");
    }
  });
});

Deno.test("K16 until stands a thenable that answers twice, at once, or throws", async () => {
  await simulate(function* () {
    const twice = {
      then(resolve: (value: number) => void, reject: (error: unknown) => void) {
        resolve(1);
        resolve(2);
        reject(new Error("too late"));
        throw new Error("much too late");
      },
    };
    assertEquals(yield* until(twice as PromiseLike<number>), 1);
    let late: (value: number) => void = () => {};
    const throws = {
      then(resolve: (value: number) => void) {
        late = resolve;
        throw new Error("at once");
      },
    };
    assertEquals((yield* thrownBy(() => until(throws as PromiseLike<number>))).message, "at once");
    const other = sleep(5);
    late(7);
    assertEquals(yield* other, undefined);
  });
});

Deno.test("K16 until(task) hears of the task's error from the start", async () => {
  await simulate(function* ({ loop }) {
    const error = new Error("heard");
    // As long as this one runs, turns follow each other with no microtask between.
    loop.createTask(says([], "busy", 100));
    const task = loop.createTask(fails(error, 2));
    assertStrictEquals(yield* thrownBy(() => until(task)), error);
  });
});

Deno.test("K16 a cancelled until aborts its signal with the Cancelled, and drops the late result", async () => {
  await simulate(function* ({ loop }) {
    for (const late of ["value", "error"]) {
      const result = Promise.withResolvers<string>();
      let signal: AbortSignal | undefined;
      const task = loop.createTask(until((s) => {
        signal = s;
        return result.promise;
      }));
      yield* checkpoint();
      assertEquals(signal!.aborted, false);
      task.cancel("changed my mind");
      assertEquals(signal!.aborted, true);
      assertInstanceOf(signal!.reason, Cancelled);
      assertEquals(signal!.reason.reason, "changed my mind");
      yield* task.wait();
      if (late === "value") result.resolve("late");
      else result.reject(new Error("late"));
      yield* until(platformTurn());
      assertEquals(task.cancelled, true);
    }
  });
});

Deno.test("K16 a promise that a cancelled task never got to wait for rejects unheard by the program", async () => {
  await simulate(function* ({ loop }) {
    function* doomed(): Coroutine {
      yield* until(Promise.reject(new Error("nobody waits")));
    }
    function* wrong(): Coroutine {
      yield Promise.reject(new Error("nobody waits")) as unknown as Op;
    }
    for (const coro of [doomed(), wrong()]) {
      const task = loop.createTask(coro);
      task.cancel();
      yield* task.wait();
      yield* until(platformTurn());
      assertEquals(task.cancelled, true);
    }
  });
});

Deno.test("K16 N15 a promise given in the place of a socket is refused, and rejects unheard by the program", async () => {
  const promise = () => Promise.reject(new Error("nobody waits")) as never;
  const loop = new Loop();
  const data = new Uint8Array(1);
  for (
    const wrong of [
      () => loop.sockAccept(promise()),
      () => loop.sockRecv(promise(), 1),
      () => loop.sockRecvInto(promise(), data),
      () => loop.sockSendall(promise(), data),
      () => loop.sockRecvfrom(promise(), 1),
      () => loop.sockSendto(promise(), data, { transport: "udp", hostname: "127.0.0.1", port: 1 }),
      () => void new Stream(promise()),
      () => serve(promise(), function* () {}),
    ]
  ) {
    assertThrows(() => wrong()?.next(), TypeError, "a value of type Promise");
    await platformTurn();
  }
});

Deno.test("K16 a function given to until may cancel the task that waits", async () => {
  await simulate(function* ({ loop }) {
    const task: Task = loop.createTask(until(() => {
      task.cancel("from inside");
      return platformTurn();
    }));
    yield* task.wait();
    yield* until(platformTurn().then(platformTurn));
    assertEquals(task.cancelled, true);
  });
});

Deno.test("K16 async code awaits tasks and runs", async () => {
  const { loop } = simulation();
  const error = new Error("x");
  const [good, bad, gone] = [loop.createTask(value(1)), loop.createTask(fails(error, 2)), loop.createTask(sleep(1e9))];
  const awaited = Promise.all([
    good,
    bad.then(() => "no error", (e) => e),
    (async () => {
      try {
        return await gone;
      } catch (error) {
        return error;
      }
    })(),
  ]);
  const result = await loop.run((function* () {
    yield* sleep(1);
    gone.cancel("enough");
    yield* gone.wait();
    return "main";
  })());
  assertEquals(result, "main");
  const [one, same, cancelled] = await awaited;
  assertEquals(one, 1);
  assertStrictEquals(same, error);
  assertInstanceOf(cancelled, TaskError);
  assertEquals((cancelled.cause as Cancelled).reason, "enough");
  assertEquals(await good, 1);
});

Deno.test("K16 run cancels main with the reason of its signal", async () => {
  for (const when of ["before", "later"]) {
    const { loop } = simulation();
    const abort = new AbortController();
    const reason = new Error("the user has left");
    if (when === "before") abort.abort(reason);
    const result = loop.run(until(new Promise(() => {})), { signal: abort.signal });
    if (when === "later") await platformTurn().then(() => abort.abort(reason));
    const error = await assertRejects(() => result, Cancelled, "the user has left");
    assertStrictEquals(error.reason, reason);
  }
});

Deno.test("K16 a promise whose then attaches and throws wakes nobody later", async () => {
  await simulate(function* () {
    const late = Promise.withResolvers<string>();
    late.promise.then = (...args: any[]) => {
      Promise.prototype.then.apply(late.promise, args as []);
      throw new Error("after all");
    };
    assertMatch(`${yield* thrownBy(() => until(() => late.promise))}`, /after all/);
    late.resolve("too late");
    assertEquals(yield* moveOnAfter(5, park(new ParkingLot<unknown>())), undefined);
  });
});

// ---- K17 ---------------------------------------------------------------------------------------------------------

Deno.test("K17 a program adds an op of its own, typed, without touching the kernel", async () => {
  await simulate(function* ({ loop }) {
    const waiting = new Map<string, Task[]>();
    loop.addOp<[topic: string, least: number]>("subscribe", {
      start(task, topic, least) {
        if (least < 0) throw new RangeError("Cannot subscribe for less than nothing");
        waiting.set(topic.toLowerCase(), [...(waiting.get(topic) ?? []), task]);
      },
      cancel: (_task, topic) => void waiting.delete(topic),
    });
    function* subscribe(topic: string, least = 0): Coroutine<string> {
      return yield ["subscribe", topic, least];
    }
    function publish(topic: string, news: string): void {
      for (const task of waiting.get(topic) ?? []) loop.wake(task, news);
      waiting.delete(topic);
    }
    const reader = loop.createTask(subscribe("weather"));
    yield* checkpoint();
    assertEquals(reader.op, ["subscribe", "weather", 0]);
    publish("weather", "rain");
    assertEquals(yield* reader.join(), "rain");
    assertInstanceOf(yield* thrownBy(() => subscribe("weather", -1)), RangeError);
    const cancelled = loop.createTask(subscribe("sport"));
    yield* checkpoint();
    cancelled.cancel();
    assertEquals(waiting.size, 0);
    yield* cancelled.wait();
    assertThrows(() => loop.wake(cancelled, "late"), Error, "does not wait");
    const given: (readonly unknown[])[] = [];
    loop.addOp("given", {
      start: (task, ...args) => {
        given.push(args);
        loop.wake(task);
      },
      cancel: () => {},
    });
    for (const args of [[], [1], [1, undefined], [1, 2, 3]]) {
      yield* (function* (): Coroutine {
        yield ["given", ...args];
      })();
      assertEquals(given.pop(), args);
    }
    // @ts-expect-error The arguments of a handler are typed.
    loop.addOp<[n: number]>("typed", { start: (_task, n: string) => n, cancel: () => {} });
    assertThrows(() => loop.addOp("typed", { start() {}, cancel() {} }), TypeError, "knows it already");
    assertThrows(() => loop.addOp("sleep", { start() {}, cancel() {} }), TypeError, "knows it already");
    for (const half of [{ start() {} }, { cancel() {} }, null]) {
      assertThrows(() => loop.addOp("half", half as any), TypeError, "start and cancel");
    }
  });
});

Deno.test("K17 a handler that wakes twice, wakes and throws, or wakes what it takes back breaks nothing", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    loop.addOp("wake_and_throw", {
      start(task) {
        loop.wake(task, "woken");
        throw new Error("after the wake");
      },
      cancel() {},
    });
    loop.addOp("wake_twice", {
      start(task) {
        loop.wake(task, "woken");
        loop.wake(task, "again");
      },
      cancel() {},
    });
    loop.addOp("wake_and_fail", {
      start(task) {
        loop.wake(task, "woken");
        loop.fail(task, new Error("again"));
      },
      cancel() {},
    });
    loop.addOp("wake_in_cancel", { start() {}, cancel: (task) => loop.wake(task, "no") });
    assertEquals(yield ["wake_and_throw"], "woken");
    assertEquals(yield ["wake_twice"], "woken");
    assertEquals(yield ["wake_and_fail"], "woken");
    const task = loop.createTask((function* (): Coroutine {
      yield ["wake_in_cancel"];
    })());
    yield* checkpoint();
    task.cancel();
    yield* task.wait();
    assertEquals(task.cancelled, true);
    yield* checkpoint();
  }, { errors });
  assertEquals(errors.map((e) => (e.error as Error).message.replace(/task .*?:/, "task:")), [
    "after the wake",
    "Cannot wake task: it does not wait for an op",
    "Cannot wake task: it does not wait for an op",
    "Cannot wake task: it does not wait for an op",
  ]);
});

Deno.test("K17 a start that is async fails its op when it rejects; what rejects otherwise is reported", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const early = new Error("early");
    loop.addOp("fail", {
      async start() {
        await null;
        throw early;
      },
      cancel() {},
    });
    loop.addOp("wake_and_fail", {
      async start(task) {
        loop.wake(task);
        await platformTurn();
        throw new Error("late");
      },
      cancel() {},
    });
    loop.addOp("fail_in_cancel", {
      start() {},
      async cancel() {
        await null;
        throw new Error("cancel");
      },
    });
    function* request(name: string): Coroutine {
      yield [name];
    }
    assertStrictEquals(yield* thrownBy(request("fail")), early);
    yield* request("wake_and_fail");
    yield* until(platformTurn().then(platformTurn));
    yield* moveOnAfter(1, request("fail_in_cancel"));
  }, { errors });
  assertEquals(errors.map(({ error }) => (error as Error).message), ["late", "cancel"]);
});

Deno.test("K17 what an async start rejects with after it has woken its task does not end the task's next wait", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const late = Promise.withResolvers<void>();
    loop.addOp("wake_and_fail", {
      start(task) {
        loop.wake(task);
        return late.promise as never; // as an async function does
      },
      cancel() {},
    });
    const lot = new ParkingLot<string>();
    loop.createTask((function* (): Coroutine {
      yield* checkpoint();
      late.reject(new Error("late"));
      yield* until(platformTurn());
      lot.unpark("by its neighbour");
    })());
    yield ["wake_and_fail"];
    assertEquals(yield* park(lot), "by its neighbour");
  }, { errors });
  assertEquals(errors.map(({ error }) => (error as Error).message), ["late"]);
});

Deno.test("K17 what an async start rejects with after its cancel is ignored, also by the next wait for the same op", async () => {
  await simulate(function* ({ loop }) {
    const started: PromiseWithResolvers<void>[] = [];
    const waiting: Task[] = [];
    loop.addOp("wait", {
      start(task) {
        waiting.push(task);
        started.push(Promise.withResolvers());
        return started.at(-1)!.promise as never; // as an async function does
      },
      cancel() {},
    });
    const op: Op = ["wait"];
    function* wait(): Coroutine<string> {
      return yield op;
    }
    assertEquals(yield* moveOnAfter(1, wait()), undefined);
    setImmediate(() => {
      started[0].reject(new Error("the first"));
      setImmediate(() => loop.wake(waiting[1], "the second"));
    });
    assertEquals(yield* wait(), "the second");
  });
});

Deno.test(
  "K17 a start that stays under way after its cancel does not hold the task",
  needs({ run: true }),
  async () => {
    const program = `
    const loop = new Loop();
    const never = new Promise(() => {});
    loop.addOp("never", { start: () => never, cancel() {} });
    function* waiter() {
      try {
        yield ["never"];
      } finally {
        return new Array(1000).fill(0);
      }
    }
    await loop.run(function* () {
      const heap = [];
      for (let i = 0; i <= 2000; i++) {
        if (i % 1000 === 0) heap.push(used());
        const task = loop.createTask(waiter());
        yield* checkpoint();
        task.cancel();
        yield* task.wait();
      }
      console.log(heap[2] - heap[1] < 3e6 ? "little" : heap);
    }());`;
    assertEquals(await runWithGc("checkpoint, Loop", program), "little\n");
  },
);

// ---- The rooms ---------------------------------------------------------------------------------------------------

Deno.test("the kernel imports nothing and never mentions Deno in its code", needs({ read: true }), async () => {
  const source = await Deno.readTextFile(new URL("../loop.ts", import.meta.url));
  const code = source.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/(^|\s)\/\/.*$/gm, "");
  assertStringIncludes(code, "class Loop");
  assertEquals(code.match(/\bDeno\b.*/g), null);
  assertEquals(code.match(/^\s*(import|export .* from)\b.*/gm), null);
  assertEquals(code.match(/\b(Date|performance|setTimeout|setInterval|Math\.random)\b.*/g), null);
});

// ---- At the edges ------------------------------------------------------------------------------------------------

Deno.test("K11 an abort that leaves nothing to wait for is told as a deadlock", async () => {
  const { loop } = simulation();
  const controller = new AbortController();
  setTimeout(() => controller.abort("enough"));
  await assertRejects(() => loop.run(shielded(new Event().wait()), { signal: controller.signal }), DeadlockError);
});

Deno.test("K8 a task that would wait for itself is told so, and its error is still reported", async () => {
  const { loop, errors } = simulation();
  const wrong = new Error("nobody takes it");
  await loop.run((function* (): Coroutine<void> {
    const task = loop.createTask((function* (): Coroutine<void> {
      const self = currentTask();
      for (const wait of [() => self.join(), () => self.wait(), () => until(self)] as (() => Coroutine<unknown>)[]) {
        const { message } = yield* thrownBy(wait);
        assertEquals(message, `Cannot wait for ${self}: it would wait for itself`);
      }
      throw wrong;
    })());
    yield* sleep(1);
    assert(task.done);
  })());
  assertEquals(errors.map(({ error }) => error), [wrong]);
});

Deno.test("K11 tasks that wait until each other has ended are a deadlock, with join or until alike", async () => {
  const { loop } = simulation();
  await assertRejects(
    () =>
      loop.run((function* (): Coroutine<void> {
        const main = currentTask();
        yield* until(loop.createTask(until(main)));
      })()),
    DeadlockError,
    "waits for until Task",
  );
});

Deno.test("K11 a wait for what a function returns is told by the name of that, if it has one", async () => {
  for (const [name, what] of [["answer", "until answer"], ["", "until function"]]) {
    const { loop } = simulation();
    const main = function* (): Coroutine {
      const child: Task = loop.createTask(until(currentTask()));
      yield* until(Object.defineProperty(() => child, "name", { value: name }));
    };
    await assertRejects(() => loop.run(main()), DeadlockError, `"main" (waits for ${what}), task 2`);
  }
});

Deno.test("K11 a wait for a task that was cancelled, or has ended, is no longer counted", async () => {
  const { loop } = simulation();
  await loop.run((function* (): Coroutine<void> {
    const other = loop.createTask(sleep(100));
    assertEquals(yield* moveOnAfter(1, until(other)), undefined);
    assertEquals(loop._parked, 0);
    yield* until(other);
    yield* until(other);
    assertEquals(loop._parked, 0);
  })());
});

Deno.test("K8 a callback that takes itself back as it is called takes no other's place", async () => {
  const { loop } = simulation();
  await loop.run((function* (): Coroutine<void> {
    const task = loop.createTask(checkpoint());
    const called: string[] = [];
    const first = () => {
      task.removeDoneCallback(first);
      called.push("first");
    };
    task.addDoneCallback(first);
    const waiting = loop.createTask(until(task));
    task.addDoneCallback(() => called.push("last"));
    yield* waiting.join();
    assertEquals(called, ["first", "last"]);
  })());
});

Deno.test("K10 a main that stops the loop and ends in one step has ended: what is left is cancelled", async () => {
  const { loop } = simulation();
  let cleanedUp = false;
  function* other(): Coroutine<void> {
    try {
      yield* sleep(1000);
    } finally {
      cleanedUp = true;
    }
  }
  const value = await loop.run((function* (): Coroutine<number> {
    loop.createTask(other());
    yield* checkpoint();
    loop.stop();
    return 5;
  })());
  assertEquals([value, cleanedUp], [5, true]);
});

Deno.test("K5 promises that are refused, or never waited for, end nothing but their wait", async () => {
  const { loop } = simulation();
  const failing = () => Promise.reject(new Error("nobody waits for it"));
  await loop.run((function* (): Coroutine<void> {
    for (const mistake of [until(failing()), ["unknown", failing()], ["unknown", until(failing())]]) {
      assertInstanceOf(
        yield* thrownBy(function* (): Coroutine<void> {
          yield mistake as never;
        }),
        TypeError,
      );
    }
    assertInstanceOf(yield* thrownBy(() => all([failing(), failing()] as never)), TypeError);
    yield* moveOnAfter(0, call(until(failing())));
    yield* until(platformTurn());
  })());
});

Deno.test("K6 createTask refuses a scope that is none, and a name that is none, where it is given", () => {
  const loop = new Loop();
  assertThrows(
    () => loop.createTask(until(Promise.reject(new Error("unheard"))), { name: Symbol("s") as never }),
    TypeError,
    "Cannot name a task Symbol(s): a name is a string",
  );
  assertThrows(() => loop.createTask(sleep(1), { name: 5 as never }), TypeError, "Cannot name a task 5");
  assertThrows(() => loop.createTask(sleep(1), { scope: {} as never }), TypeError, "it is not a CancelScope");
  return new Loop().run(cancelScope(function* (scope) {
    assertThrows(() => loop.createTask(sleep(1), { scope }), Error, "it is in another loop");
    yield* checkpoint();
  }));
});

Deno.test("K16 a wait for a promise that stays leaves hardly anything with it", needs({ run: true }), async () => {
  const program = `
    const loop = new Loop();
    const never = new Promise(() => {});
    await loop.run(function* () {
      const heap = [];
      for (let i = 0; i <= 4000; i++) {
        if (i % 2000 === 0) heap.push(used());
        const task = loop.createTask(until(never));
        yield* checkpoint();
        task.cancel();
        yield* task.wait();
      }
      console.log(heap[2] - heap[1] < 1e6 ? "little" : heap);
    }());`;
  assertEquals(await runWithGc("checkpoint, Loop, until", program), "little\n");
});

Deno.test("K16 N15 a promise that is refused before the task that is to wait for it has begun is nobody's end", async () => {
  const { loop } = simulation();
  const failing = () => Promise.reject(new Error("expected"));
  await loop.run((function* (): Coroutine<void> {
    for (let i = 0; i < 1500; i++) { // In some of these rounds the platform turns in between.
      const within = [(coro: Coroutine) => coro, (coro: Coroutine) => moveOnAfter(10, coro), shielded<void>][i % 3];
      const wait = within(until(failing()));
      assertInstanceOf(yield* thrownBy(() => all([wait])), Error);
    }
  })());
});

Deno.test("K16 N15 a promise that is refused before the loop of its task runs is that task's error alone", async () => {
  const { loop } = simulation();
  const error = new Error("expected");
  const task = loop.createTask(until(Promise.reject(error)));
  await platformTurn();
  assertStrictEquals(await loop.run(thrownBy(task.join())), error);
});

Deno.test("K16 N15 a promise of another realm that is refused with nobody to wait for it is nobody's end either", async () => {
  const foreign: () => Promise<void> = runInNewContext('() => Promise.reject(new Error("expected"))');
  assert(!(foreign().catch(() => {}) instanceof Promise));
  const { loop } = simulation();
  assertEquals(await loop.run(moveOnAfter(0, until(foreign()))), undefined);
  class OwnPromise extends Promise<void> {
    override get [Symbol.toStringTag](): string {
      return "OwnPromise";
    }
  }
  const looksLikeOne = {
    get [Symbol.toStringTag]() {
      return "Promise";
    },
  };
  for (const source of [() => OwnPromise.reject(new Error("expected")), foreign]) {
    assertEquals(await loop.run(moveOnAfter(0, until(source()))), undefined);
    const error = await loop.run((function* (): Coroutine<unknown> {
      try {
        return yield ["nothing that is known", looksLikeOne, source()];
      } catch (error) {
        return error;
      }
    })());
    assertInstanceOf(error, TypeError);
  }
  await platformTurn();
});

Deno.test("K8 K16 a task that async code awaits within an until is not reported: its error was taken", async () => {
  const { loop, errors } = simulation();
  function* failing(): Coroutine {
    yield* checkpoint();
    throw new Error("taken");
  }
  await loop.run((function* (): Coroutine<void> {
    for (const later of [(task: Task) => Promise.all([task]), async (task: Task) => void await task]) {
      assertEquals(((yield* thrownBy(() => until(later(loop.createTask(failing()))))) as Error).message, "taken");
    }
    loop.createTask(failing());
    yield* sleep(1);
  })());
  assertEquals(errors.map(({ task }) => task?.id), [4]);
});

Deno.test("K12 who was about to take a step when stop() came takes it before others get what it was woken for", async () => {
  const { loop } = simulation();
  const [a, b] = socketPair();
  const got: string[] = [];
  function* reader(name: string): Coroutine {
    yield* readWait(a); // By hand: sockRecv would wait on.
    got.push(`${name} ${a.recv(10).length}`);
  }
  const first = loop.createTask(reader("first"));
  loop.createTask((function* (): Coroutine {
    yield* checkpoint();
    while (first.op) yield* checkpoint();
    yield* reader("second");
  })());
  loop.createTask((function* (): Coroutine {
    yield* checkpoint();
    yield* loop.sockSendall(b, new Uint8Array(3));
    while (first.op) yield* checkpoint();
    loop.stop();
    yield* sleep(1);
    b.close();
  })());
  await loop.runForever();
  await loop.runForever();
  a.close();
  assertEquals(got, ["first 3", "second 0"]);
});

Deno.test("K17 a handler that wakes its task late, or another loop's, ends no other wait", async () => {
  const { loop } = simulation();
  const other = new Loop();
  await loop.run((function* (): Coroutine<void> {
    let late!: Task;
    loop.addOp("forgetful", { start: (task) => late = task, cancel() {} });
    yield* moveOnAfter(
      5,
      (function* (): Coroutine {
        yield ["forgetful"];
      })(),
    );
    const wakers = [() => loop.wake(late), () => loop.fail(late, new Error("late"))];
    const event = new Event();
    loop.createTask((function* (): Coroutine {
      for (const wake of wakers) assertThrows(wake, Error, "which ends by itself");
      yield* checkpoint();
      for (const wake of wakers) assertThrows(wake, Error, "it waits for park");
      event.set();
    })());
    const began = loop.time();
    yield* sleep(100);
    assertEquals(loop.time() - began, 100);
    event.clear();
    loop.createTask((function* (): Coroutine {
      for (const wake of wakers) assertThrows(wake, Error, 'Cannot wake task 1 "main": it waits for park');
      assertThrows(() => other.wake(late), Error, "it is a task of another loop");
      event.set();
    })());
    yield* event.wait();
  })());
});

Deno.test("K17 the types of an op's arguments are found in its start, whatever cancel leaves out", () => {
  const { loop } = simulation();
  loop.addOp("a", { start: (task, n: number) => loop.wake(task, n.toFixed()), cancel() {} });
  loop.addOp("b", { start: (task, n: number, s: string) => loop.wake(task, s.at(n)), cancel: (task) => task.id });
  loop.addOp("c", { start: (task, n: number, s: string) => loop.wake(task, s.at(n)), cancel: (_, n) => n.toFixed() });
  function teach<A extends unknown[]>(name: string, handler: OpHandler<A>): void {
    loop.addOp(name, handler);
  }
  teach<[number]>("generic", { start: (task, n) => loop.wake(task, n), cancel() {} });
  // @ts-expect-error It has them as start has.
  loop.addOp("d", { start: (task, n: number) => loop.wake(task, n), cancel: (_, s: string) => s.at(0) });
  assertThrows(() => loop.addOp(5 as never, { start() {}, cancel() {} }), TypeError, "op 5: its name must be a string");
});

Deno.test("K6 what cannot be an option, a callback or a coroutine is refused where it is written", () => {
  assertThrows(() => new Loop({ trace: "x" as never }), TypeError, 'the trace "x": it must be a function');
  assertThrows(() => new Loop({ onError: 5 as never }), TypeError, "the onError 5: it must be a function");
  assertThrows(() => new Loop({ clock: {} as never }), TypeError, "it needs the function now");
  assertThrows(
    () => new Loop({ network: 5 as never }),
    TypeError,
    "with the network 5: it needs functions such as listen",
  );
  assertThrows(() => new Loop({ network: {} as never }), TypeError, "it needs functions such as listen");
  assertThrows(
    () => new Loop({ network: null as never }),
    TypeError,
    "network null: it needs functions such as listen",
  );
  for (const network of [{ listen() {} }, { connect() {} }]) new Loop({ network: network as never }); // Either will do.
  assertThrows(() => new Loop({ selector: null as never }), TypeError, "it needs the function select");
  const { loop } = simulation();
  const task = loop.createTask(sleep(1));
  assertThrows(() => task.addDoneCallback(5 as never), TypeError, "Cannot call back 5: it is not a function");
  assertThrows(() => loop.createTask(task as never), TypeError, "from a task: it runs already; wait for it with");
  assertThrows(() => moveOnAfter(sleep(1) as never, 10 as never), RangeError, "for a coroutine ms");
  return loop.runForever();
});

Deno.test("N3 what would block though it was ready has gone to somebody else: every socket operation waits on", async () => {
  await simulate(function* ({ loop }) {
    const addr = { transport: "udp", hostname: "127.0.0.1", port: 1 } as const;
    /** Each call of it would block the first time. */
    class Contended extends FakeSocket {
      readonly tried: string[] = [];
      override ready = EVENT_READ | EVENT_WRITE;
      #second<T>(what: string, value: T): T {
        this.tried.push(what);
        if (this.tried.filter((one) => one === what).length === 1) throw new WouldBlock("Somebody was quicker");
        return value;
      }
      recv = () => this.#second("recv", new Uint8Array(1));
      recvInto = () => this.#second("recvInto", 2);
      accept = (): [SocketLike, Addr] => this.#second("accept", [this, addr]);
      recvfrom = (): [Uint8Array, Addr] => this.#second("recvfrom", [new Uint8Array(3), addr]);
      send = (data: Uint8Array) => this.#second("send", data.length);
      sendto = (data: Uint8Array) => this.#second("sendto", data.length);
      sent = () => this.#second("sent", 5);
    }
    const sock = new Contended();
    assertEquals((yield* loop.sockRecv(sock, 10)).length, 1);
    assertEquals(yield* loop.sockRecvInto(sock, new Uint8Array(10)), 2);
    assertEquals((yield* loop.sockAccept(sock))[1], addr);
    assertEquals((yield* loop.sockRecvfrom(sock, 10))[0].length, 3);
    yield* loop.sockSendall(sock, new Uint8Array(4));
    assertEquals(yield* loop.sockSendto(sock, new Uint8Array(5), addr), 5);
    const calls = ["recv", "recvInto", "accept", "recvfrom", "send", "sendto", "sent"];
    assertEquals(sock.tried, calls.flatMap((call) => [call, call]));
  });
});

Deno.test("K3 K12 runs that are cut short again and again still look at the platform and at sockets", async () => {
  const loop = new Loop();
  const [a, b] = socketPair();
  let fired = false;
  const timer = setTimeout(() => fired = true, 1);
  let got = 0;
  function* stopper(): Coroutine {
    while (got === 0 || !fired) {
      loop.stop();
      yield* checkpoint();
    }
  }
  for (let i = 0; i < 2; i++) loop.createTask(stopper());
  loop.createTask((function* (): Coroutine {
    got = (yield* loop.sockRecv(a, 10)).length;
  })());
  b.send(new Uint8Array(3));
  let runs = 0;
  for (; [...loop.tasks].length > 0 && runs < 100_000; runs++) await loop.runForever();
  clearTimeout(timer);
  assertEquals([got, fired], [3, true]);
  a.close();
  b.close();
});

Deno.test("K16 until does not touch a promise before its wait begins, unless a task is to wait for it", async () => {
  class Lazy extends Promise<string> {
    static started = 0;
    override then(...handlers: any[]): any {
      Lazy.started++;
      return super.then(...handlers);
    }
  }
  const { loop } = simulation();
  const lazy = new Lazy((resolve) => resolve("value"));
  const wait = until(lazy);
  const bounded = moveOnAfter(10, until(lazy));
  assertEquals(Lazy.started, 0);
  assertEquals(await loop.run(all([wait, bounded])), ["value", "value"]);
});

Deno.test("K11 a scope that is cancelled holds no deadline any more: a deadlock in its cleanup is told at once", async () => {
  const { loop, world } = simulation();
  let timers = -1;
  const stuck = loop.run(cancelScope(function* (scope): Coroutine<void> {
    try {
      scope.cancel();
      yield* checkpoint();
    } finally {
      timers = loop._timers.length;
      yield* shielded(park(new ParkingLot("never")));
    }
  }, { timeout: 3_600_000 }));
  await assertRejects(() => stuck, DeadlockError);
  assertEquals(timers, 0);
  assert(world.now() < 10_000);
});

Deno.test("K11 a selector that returns early does not cut the grace short", async () => {
  const { loop, world } = simulation();
  const select = world.select.bind(world);
  let polls = 0;
  world.select = (timeout?: number) => {
    polls++;
    return select(timeout === undefined ? undefined : Math.min(timeout, 300));
  };
  const lot = new ParkingLot();
  await assertRejects(() => loop.run(park(lot)), DeadlockError);
  assertEquals([loop.time(), polls], [1000, 4]);
  const woken = loop.run((function* (): Coroutine<string> {
    setImmediate(() => lot.unpark()); // in the middle of the grace
    yield* park(lot);
    return "woken";
  })());
  assertEquals(await woken, "woken");
});

Deno.test("K11 no selector is asked to wait for less than nothing, though the clock moves on between two looks", async () => {
  for (const early of [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) {
    let now = 0;
    const asked: number[] = [];
    const { loop, world } = simulation({ clock: { now: () => now += 0.25 } });
    world.select = (timeout = 0) => {
      asked.push(timeout);
      now += Math.max(0, timeout - early);
      return Promise.resolve([]);
    };
    await assertRejects(() => loop.run(park(new ParkingLot())), DeadlockError);
    assert(asked.length > 0 && asked.every((timeout) => timeout >= 0), `${early} ms early: asked for ${asked}`);
  }
});

Deno.test("C6 until(task) that is cancelled by a callback of that very task has taken its wait back, and nothing else", async () => {
  const { loop, errors } = simulation();
  await assertRejects(
    () =>
      loop.run(taskGroup(function* (group): Coroutine<void> {
        const failing = group.createTask((function* () {
          yield* sleep(1);
          throw new Error("boom");
        })());
        group.createTask(until(failing)); // its wait is the second callback: the group's own is the first, and cancels it
      })),
    Error,
    "boom",
  );
  assertEquals(errors, []);
  assertEquals(loop._parked, 0);
  await assertRejects(() => loop.run(park(new ParkingLot())), DeadlockError); // which a wrong count would hide
});

Deno.test("K8 a callback that another takes back, as both are being called, is not called", async () => {
  const { loop, errors } = simulation();
  await loop.run((function* (): Coroutine<void> {
    const called: string[] = [];
    const task = loop.createTask((function* () {
      yield* checkpoint();
      throw new Error("boom");
    })());
    const second = () => called.push("second");
    task.addDoneCallback(() => task.removeDoneCallback(second));
    task.addDoneCallback(second);
    task.addDoneCallback(() => called.push("third"));
    yield* task.wait();
    assertEquals(called, ["third"]);
  })());
  assertEquals(errors, []);
});
