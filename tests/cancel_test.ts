// deno-lint-ignore-file no-inner-declarations -- a coroutine stands beside the loop of cases that it belongs to
/** Rules C1 to C11: cancellation. Time is simulated. */
import {
  assert,
  assertEquals,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
  assertStringIncludes,
  assertThrows,
} from "@std/assert";
import {
  call,
  Cancelled,
  type CancelScope,
  cancelScope,
  checkpoint,
  Condition,
  type Coroutine,
  currentTask,
  DeadlockError,
  Event,
  EVENT_READ,
  EVENT_WRITE,
  failAfter,
  Lock,
  Loop,
  moveOnAfter,
  type Op,
  park,
  ParkingLot,
  Queue,
  race,
  readWait,
  Semaphore,
  shield,
  sleep,
  type SocketLike,
  type Task,
  TaskError,
  type TaskGroup,
  taskGroup,
  TimeoutError,
  until,
  writeWait,
} from "../mod.ts";
import { FakeSocket, platformTurn, simulate, type Simulation, simulation, thrownBy } from "./world.ts";

/** Runs `coro` as a task up to its first wait, cancels it, and waits for its end. */
function* cancelledTask<T>(coro: Coroutine<T>, reason?: unknown): Coroutine<Task<T>> {
  const task = currentTask().loop.createTask(coro);
  for (let i = 0; i < 3; i++) yield* checkpoint();
  task.cancel(reason);
  yield* task.wait();
  return task;
}

/** The same, where the test does not need the task. (A task that main returns would be awaited by `run`.) */
function* ends(coro: Coroutine<unknown>): Coroutine {
  yield* cancelledTask(coro);
}

/** A socket whose other end is the test. */
class Pipe extends FakeSocket implements SocketLike {
  arrived: number[] = [];
  room = 0;
  sent: number[] = [];

  arrive(...bytes: number[]): void {
    this.arrived.push(...bytes);
    this.ready |= 1;
  }
  drain(room: number): void {
    this.room = room;
    this.ready |= 2;
  }
  recv(maxBytes: number): Uint8Array {
    const bytes = this.arrived.splice(0, maxBytes);
    if (this.arrived.length === 0) this.ready &= ~1;
    return new Uint8Array(bytes);
  }
  recvInto(buffer: Uint8Array): number {
    const bytes = this.recv(buffer.length);
    buffer.set(bytes);
    return bytes.length;
  }
  send(data: Uint8Array): number {
    const taken = data.subarray(0, this.room);
    this.sent.push(...taken);
    this.room -= taken.length;
    if (this.room === 0) this.ready &= ~2;
    return taken.length;
  }
}

// ---- C1 ----------------------------------------------------------------------------------------------------------

Deno.test("C1 Cancelled is thrown at an op, with the reason, and nowhere else", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    function* worker(): Coroutine {
      try {
        for (;;) {
          log.push("step");
          yield* checkpoint();
        }
      } catch (error) {
        assertInstanceOf(error, Cancelled);
        assertEquals([error.name, error.message, error.reason], [
          "Cancelled",
          "The task was cancelled: no need",
          "no need",
        ]);
        log.push("cancelled");
        throw error;
      }
    }
    const task = loop.createTask(worker());
    yield* checkpoint();
    yield* checkpoint();
    const before = [...log];
    task.cancel("no need");
    assertEquals(log, before);
    yield* task.wait();
    assertEquals([log.at(-1), task.cancelled, task.done], ["cancelled", true, true]);
  });
});

/** The case that return() gets wrong: cleanup that waits, in a coroutine that others have delegated to. */
for (const depth of [0, 1, 2, 10, 500]) {
  Deno.test(`C1 waiting cleanup ${depth} delegations deep runs to its end, and nothing after it runs`, async () => {
    const log: string[] = [];
    let cleanups = 0;
    function* cleanup(): Coroutine {
      yield* sleep(5);
      yield* checkpoint();
      cleanups++;
    }
    function* nested(level: number): Coroutine {
      try {
        if (level === 0) yield* sleep(1e6);
        else yield* nested(level - 1);
        log.push("after the wait");
      } finally {
        yield* cancelScope(cleanup, { shield: true });
      }
      log.push("after the block");
    }
    await simulate(function* () {
      const task = yield* cancelledTask(nested(depth));
      assertEquals(task.cancelled, true);
    });
    assertEquals([cleanups, log], [depth + 1, []]);
  });
}

Deno.test("C1 what delegates to the one that cleans up is not resurrected", async () => {
  const log: string[] = [];
  function* inner(): Coroutine {
    try {
      yield* sleep(1e6);
    } finally {
      log.push("inner cleans up");
      yield* shield(sleep(10));
      log.push("inner is clean");
    }
  }
  function* outer(): Coroutine {
    yield* inner();
    log.push("resurrected");
    yield* sleep(1);
    log.push("still alive");
  }
  await simulate(() => ends(outer()));
  assertEquals(log, ["inner cleans up", "inner is clean"]);
});

Deno.test("C1 cleanup without a shield ends at its first op, and other cleanup goes on", async () => {
  const log: string[] = [];
  function* worker(): Coroutine {
    try {
      try {
        yield* sleep(1e6);
      } finally {
        log.push("begins");
        yield* checkpoint();
        log.push("not reached");
      }
    } finally {
      log.push("outer");
    }
  }
  await simulate(() => ends(worker()));
  assertEquals(log, ["begins", "outer"]);
});

Deno.test("C1 using and finally run innermost first, also with cleanup that waits between", async () => {
  const log: string[] = [];
  const thing = (name: string) => ({ [Symbol.dispose]: () => void log.push(name) });
  function* worker(): Coroutine {
    using _a = thing("a");
    try {
      using _b = thing("b");
      yield* sleep(1e6);
    } finally {
      yield* shield(sleep(1));
      log.push("finally");
    }
  }
  await simulate(() => ends(worker()));
  assertEquals(log, ["b", "finally", "a"]);
});

// ---- C2 ----------------------------------------------------------------------------------------------------------

Deno.test("C2 each further op in a cancelled scope throws again", async () => {
  let caught = 0;
  function* worker(): Coroutine {
    const sock = new FakeSocket();
    const ops = [() => sleep(1), checkpoint, () => readWait(sock), () => until(Promise.resolve()), () => sleep(0)];
    for (const op of [() => sleep(1e6), ...ops]) {
      try {
        yield* op();
      } catch (error) {
        assertInstanceOf(error, Cancelled);
        caught++;
      }
    }
    yield* checkpoint();
  }
  await simulate(function* () {
    const task = yield* cancelledTask(worker());
    assertEquals([caught, task.cancelled], [6, true]);
  });
});

Deno.test("C2 a task that swallows its cancellation for ever is given up, reported, and holds up nobody", async () => {
  const errors: Simulation["errors"] = [];
  let caught = 0;
  function* stubborn(): Coroutine {
    for (;;) {
      try {
        yield* sleep(1);
      } catch {
        caught++;
      }
    }
  }
  const beside = await simulate(function* ({ loop }) {
    const task = loop.createTask(stubborn(), { name: "mule" });
    let turns = 0;
    yield* checkpoint();
    task.cancel();
    while (!task.done) {
      yield* checkpoint();
      turns++;
    }
    assertStringIncludes((yield* thrownBy(() => task.join())).message, "1000 times");
    return turns;
  }, { errors });
  assert(caught >= 1000 && caught <= 1001, `caught ${caught}`);
  assert(beside >= 1000);
  assertEquals(errors.length, 1);
  assertStringIncludes((errors[0].error as Error).message, `"mule"`);
});

Deno.test("C2 a main that swallows its cancellation, or what is left behind it, does not hang run", async () => {
  const errors: Simulation["errors"] = [];
  function* stubborn(): Coroutine {
    for (;;) {
      try {
        yield* taskGroup(function* (group) {
          group.createTask(sleep(1e6));
          yield* failAfter(1e5, sleep(1e6));
        });
      } catch {
        // Goes on as if nothing had happened.
      }
    }
  }
  const late = await simulate(function* ({ loop, world }) {
    loop.createTask(stubborn());
    yield* sleep(1);
    return world;
  }, { errors });
  assert(late.now() < 1000, `the clock shows ${late.now()}`);
  assertEquals(errors.length, 1);
});

Deno.test("C2 a task that was given up leaves no timer, and its loop can be used again", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const task = yield* cancelledTask(cancelScope(function* () {
      for (;;) {
        try {
          yield* sleep(1);
        } catch {
          // Goes on.
        }
      }
    }, { timeout: 1e9 }));
    assertEquals(task.done, true);
    assertEquals(loop._timers.length, 0);
    assertEquals([...loop.tasks].length, 1);
  }, { errors });
  assertEquals(errors.length, 1);
});

Deno.test("C2 a coroutine that cannot even be returned is given up all the same", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* () {
    const task = yield* cancelledTask((function* () {
      for (;;) {
        try {
          yield* checkpoint();
        } finally {
          // deno-lint-ignore no-unsafe-finally -- that is what makes it so stubborn
          continue;
        }
      }
    })());
    assertEquals(task.done, true);
  }, { errors });
  assertEquals(errors.length, 1);
});

Deno.test("C2 who returns the coroutine of a task that was given up by hand leaves the other tasks in reach", async () => {
  await simulate(function* ({ loop }) {
    const coro = cancelScope(function* () {
      for (let round = 0; round < 2500; round++) { // The loop gives up after 2000.
        try {
          yield* sleep(1);
        } finally {
          // deno-lint-ignore no-unsafe-finally -- neither a Cancelled nor a return ends this
          continue;
        }
      }
    });
    yield* cancelledTask(coro);
    const other = loop.createTask(sleep(1e6));
    while (!coro.return(undefined).done);
    assertEquals([...loop.tasks].map(String), ['task 1 "main"', String(other)]);
    other.cancel();
    yield* other.wait();
  }, { errors: [] });
});

for (const whose of ["its own", "that of a block that has ended"]) {
  Deno.test(`C2 timeouts in a shield do not hide a task that swallows a cancellation for ever: ${whose}`, async () => {
    const errors: Simulation["errors"] = [];
    let rounds = 0;
    function* swallows(): Coroutine {
      while (rounds++ < 3000) {
        try {
          yield* sleep(1);
        } catch { /* and on we go */ }
        yield* shield(sleep(100), { timeout: 1 });
      }
    }
    await simulate(function* ({ loop }) {
      let task!: Task;
      yield* cancelScope(function* (scope) {
        task = loop.createTask(swallows(), whose === "its own" ? {} : { scope });
        yield* checkpoint();
        if (whose === "its own") task.cancel();
        else scope.cancel();
      });
      yield* task.wait();
    }, { errors });
    assertEquals(errors.length, 1);
    assertEquals(rounds, 1001);
  });
}

/** Never stops, whatever it is thrown. */
function* stubborn(attempt: () => Coroutine<unknown>): Coroutine {
  for (;;) {
    try {
      yield* attempt();
    } catch {
      // and on it goes
    }
  }
}

Deno.test("C2 a task that was given up leaves all its blocks, though the cleanup of each waits", async () => {
  const errors: Simulation["errors"] = [];
  let left = 0;
  function* nested(depth: number): Coroutine {
    try {
      yield* depth === 0 ? stubborn(checkpoint) : nested(depth - 1);
    } finally {
      try {
        yield* checkpoint();
      } finally {
        left++;
      }
    }
  }
  await simulate(() => ends(nested(10)), { errors });
  assertEquals([errors.length, left], [1, 11]);
});

Deno.test("C2 C7 S1 what a task that was given up had half taken is let go of", async () => {
  const lock = new Lock();
  const semaphore = new Semaphore(1);
  const full = new Queue<number>();
  full.putNowait(1);
  const empty = new Queue<number>(1);
  const changed = new Condition();
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const sent: number[] = [];
    const sock = Object.assign(new FakeSocket(), {
      recv: () => new Uint8Array(0),
      recvInto: () => 0,
      send: (data: Uint8Array) => sent.push(data.length) && data.length,
    }) as unknown as SocketLike & FakeSocket;
    sock.ready = EVENT_WRITE;
    function* waitForChange(): Coroutine {
      using _guard = yield* changed.acquire();
      yield* changed.wait();
    }
    const attempts: (() => Coroutine<unknown>)[] = [
      () => lock.acquire(),
      () => semaphore.acquire(),
      () => full.get(),
      () => empty.put(1),
      () => loop.sockSendall(sock, new Uint8Array(1)),
    ];
    for (const attempt of attempts) {
      const task = loop.createTask(stubborn(attempt));
      task.cancel();
      yield* task.wait();
      yield* failAfter(20, attempt());
    }
    yield* cancelledTask(stubborn(waitForChange));
    yield* failAfter(20, changed.acquire());
    assertEquals([loop.time(), sent.length > 0], [0, true]);
  }, { errors });
  assertEquals(errors.length, 6);
});

Deno.test("C2 a task that was given up disposes of what it holds, without waiting for anybody", async () => {
  const log: string[] = [];
  await simulate(function* () {
    yield* cancelledTask((function* () {
      using _ = { [Symbol.dispose]: () => log.push("disposed") };
      try {
        yield* call(stubborn(() => sleep(1)));
      } finally {
        log.push("cleanup");
        yield* shield(sleep(1000));
        log.push("not reached");
      }
    })());
    assertEquals(currentTask().loop.time(), 0);
  }, { errors: [] });
  assertEquals(log, ["cleanup", "disposed"]);
});

Deno.test("C2 N15 a promise that a task which was given up would wait for rejects unheard by the program", async () => {
  await simulate(function* () {
    yield* cancelledTask((function* () {
      try {
        yield* stubborn(() => sleep(1));
      } finally {
        yield* until(Promise.reject(new Error("nobody waits")));
      }
    })());
    yield* until(platformTurn());
  }, { errors: [] });
});

Deno.test("C2 K8 a task that was given up as it joined another does not silence its error", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    const bad = loop.createTask((function* () {
      yield* sleep(30);
      throw "bad";
    })());
    yield* cancelledTask(stubborn(() => bad.join()));
    yield* sleep(60);
  }, { errors });
  assertEquals(errors.map(({ error }) => error).at(-1), "bad");
});

/** Starts tasks in `group`, whatever it is thrown, or if it is returned; `failing` is told what each fails with, cancelled. */
function* startsForEver(group: TaskGroup, failing: (error: Error) => void): Coroutine {
  for (let n = 1;; n++) {
    try {
      yield* group.start(function* () {
        const error = new Error(`start ${n}`);
        failing(error);
        yield* thrownBy(sleep(1e6));
        throw error;
      });
    } finally {
      // deno-lint-ignore no-unsafe-finally -- neither a Cancelled nor a return ends this
      continue;
    }
  }
}

Deno.test("C2 K8 the errors of a group whose owner was given up are reported", async () => {
  const errors: Simulation["errors"] = [];
  function* child(): Coroutine {
    yield* sleep(1);
    throw "child";
  }
  let last: unknown;
  await simulate(function* ({ loop }) {
    const inBody = loop.createTask(taskGroup(function* (group) {
      group.createTask(child());
      yield* stubborn(() => sleep(5));
    }));
    const inStart = loop.createTask(taskGroup(function* (group) {
      yield* stubborn(() =>
        group.start(function* () {
          try {
            yield* sleep(1000);
          } catch {
            yield* shield(sleep(1));
            throw "start";
          }
        })
      );
    }));
    const unreturnable = loop.createTask(taskGroup((group) => startsForEver(group, (error) => last = error)));
    yield* sleep(10);
    inStart.cancel();
    unreturnable.cancel();
    yield* inBody.wait();
    yield* inStart.wait();
    yield* unreturnable.wait();
  }, { errors });
  assert(errors.some(({ error, task }) => error === "child" && task !== null));
  assert(errors.some(({ error }) => error === "start"));
  assert(errors.some(({ error }) => error === last));
});

Deno.test("C2 K8 what the loser of a race throws is reported, if who raced was given up", async () => {
  const errors: Simulation["errors"] = [];
  function* loser(): Coroutine {
    try {
      yield* sleep(1e6);
    } catch {
      throw "loser";
    }
  }
  await simulate(function* () {
    yield* cancelledTask(stubborn(() => race([loser()])));
    yield* checkpoint();
  }, { errors });
  assert(errors.some(({ error }) => error === "loser"));
});

Deno.test("C2 G6 a task whose start nobody waits for any more is cancelled, and its error is the group's", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      yield* cancelledTask(stubborn(() =>
        group.start(function* () {
          try {
            yield* sleep(1e6);
          } catch {
            throw "start";
          }
        })
      ));
      yield* sleep(1e6);
    }));
    assertEquals(error, "start");
    assertEquals(currentTask().loop.time(), 0);
  }, { errors });
});

Deno.test("C2 G6 so is that of one whose start was given up though it could not even be returned", async () => {
  let last: unknown;
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      yield* cancelledTask(startsForEver(group, (error) => last = error));
    }));
    assertEquals(error.errors.at(-1), last);
  }, { errors: [] });
});

Deno.test("C2 a task that yields what cannot be looked at, and catches everything, is given up too", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* () {
    const { proxy, revoke } = Proxy.revocable([] as unknown as Op, {});
    revoke();
    yield* cancelledTask(stubborn(function* () {
      yield proxy;
    }));
  }, { errors });
  assertEquals(errors.length, 1);
});

Deno.test("C10 a reason that cannot be put in words does not keep a task from its cleanup", async () => {
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const mined = Object.defineProperty(new Error(), "message", {
    get() {
      throw new Error("Do not look");
    },
  });
  for (const reason of [proxy, mined]) {
    const log: string[] = [];
    await simulate(function* () {
      const task = yield* cancelledTask(
        (function* () {
          try {
            yield* sleep(1000);
          } finally {
            log.push("cleanup");
          }
        })(),
        reason,
      );
      assert(task.cancelled);
    });
    assertEquals(log, ["cleanup"]);
  }
});

Deno.test("C2 who catches different cancellations, each of its own scope, is not given up", async () => {
  await simulate(function* () {
    for (let i = 0; i < 3000; i++) yield* moveOnAfter(1, sleep(5));
  });
});

// ---- C3 ----------------------------------------------------------------------------------------------------------

Deno.test("C3 cancel is a request: idempotent, the first reason wins", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask(sleep(1e6));
    yield* checkpoint();
    task.cancel("first");
    task.cancel("second");
    assertEquals([task.done, task.cancelled], [false, false]);
    yield* task.wait();
    task.cancel("third");
    const error = yield* thrownBy(() => task.join());
    assertEquals(error.cause.reason, "first");
  });
});

Deno.test("C3 a chain of cancellations, each made as the last is carried out, overflows no stack and loses no task", async () => {
  await simulate(function* ({ loop }) {
    const tasks: Task[] = [];
    const took: string[] = [];
    loop.addOp("chain", {
      start() {},
      cancel(task) {
        const next = tasks[tasks.indexOf(task) + 1];
        next?.cancel(`after ${task.id}`);
        took.push(task.name);
      },
    });
    function* link(): Coroutine {
      yield ["chain"];
    }
    for (let i = 0; i < 5000; i++) tasks.push(loop.createTask(link(), { name: `${i}` }));
    yield* checkpoint();
    tasks[0].cancel();
    assertEquals(took, tasks.map((task) => task.name));
    for (const task of tasks) yield* task.wait();
    assertEquals(tasks.filter((task) => task.cancelled).length, 5000);
  });
});

Deno.test("C3 cancel of an ended task changes nothing", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask((function* () {
      return 7;
    })());
    assertEquals(yield* task.join(), 7);
    task.cancel();
    assertEquals([task.cancelled, yield* task.join()], [false, 7]);
  });
});

Deno.test("C3 a task that was cancelled twice leaves nothing in the scope that it was born in", async () => {
  await simulate(function* ({ loop }) {
    yield* cancelScope(function* (scope) {
      const task = loop.createTask(sleep(1000), { scope });
      yield* checkpoint();
      task.cancel("first");
      task.cancel("second");
      yield* task.wait();
      assertEquals([task.cancelled, scope._first], [true, null]);
    });
  });
});

Deno.test("C3 to cancel a task that has ended leaves those that were born beside it in reach", async () => {
  await simulate(function* ({ loop }) {
    yield* cancelScope(function* (scope) {
      const tasks = [sleep(1000), sleep(0), sleep(1000)].map((coro) => loop.createTask(coro, { scope }));
      yield* tasks[1].wait();
      tasks[1].cancel();
      assertEquals([...loop.tasks].length, 3); // main and the two that sleep
      scope.cancel();
      yield* shield(tasks[0].wait());
      yield* shield(tasks[2].wait());
      assertEquals(tasks.map((task) => task.cancelled), [true, false, true]);
    });
    assertEquals(loop.time(), 0);
  });
});

Deno.test("C3 wait waits for the end, cleanup included; any number of tasks may", async () => {
  await simulate(function* ({ loop, world }) {
    function* slowly(): Coroutine {
      try {
        yield* sleep(1e6);
      } finally {
        yield* shield(sleep(100));
      }
    }
    const task = loop.createTask(slowly());
    yield* checkpoint();
    const waiters = [loop.createTask(task.wait()), loop.createTask(task.wait())];
    const early = task.wait(); // Made before the end, and run after it.
    task.cancel();
    yield* task.wait();
    assertEquals([world.now(), task.cancelled], [100, true]);
    for (const waiter of waiters) yield* waiter.join();
    yield* early;
    yield* task.wait();
    assertEquals(world.now(), 100);
  });
});

Deno.test("C3 a cancel, or a deadline, that comes from outside wakes an idle loop", async () => {
  for (const how of ["cancel", "deadline"]) {
    for (const loop of [simulation().loop, new Loop()]) {
      let scope!: CancelScope;
      const result = loop.run(cancelScope(function* (own): Coroutine {
        scope = own;
        yield* until(new Promise(() => {}));
      }));
      await platformTurn();
      await platformTurn();
      if (how === "cancel") scope.cancel();
      else scope.deadline = loop.time() + 5;
      await result;
      assertEquals(scope.cancelledCaught, true);
    }
  }
});

Deno.test("C3 the reason is in the message in words, whatever it is", () => {
  const reasons = [undefined, "no need", new Error("no room"), { message: "secret" }, 5];
  assertEquals(reasons.map((reason) => new Cancelled(reason).message), [
    "The task was cancelled",
    "The task was cancelled: no need",
    "The task was cancelled: no room",
    "The task was cancelled: a value of type Object",
    "The task was cancelled: 5",
  ]);
});

// ---- C4 ----------------------------------------------------------------------------------------------------------

Deno.test("C4 a task that is ready takes the step it is due, and its op delivers what it had", async () => {
  await simulate(function* ({ loop }) {
    const lot = new ParkingLot<string>();
    const settled = Promise.withResolvers<string>();
    const waits: Record<string, [wait: () => Coroutine<unknown>, end: () => void]> = {
      park: [() => park(lot), () => void lot.unpark("there")],
      until: [() => until({ then: (resolve: any) => settled.promise.then(resolve) } as any), () => {}],
      checkpoint: [checkpoint, () => {}],
    };
    for (const [name, [wait, end]] of Object.entries(waits)) {
      const log: unknown[] = [];
      function* worker(): Coroutine {
        log.push(yield* wait());
        try {
          yield* checkpoint();
        } catch (error) {
          log.push((error as Error).name);
          throw error;
        }
      }
      const task = loop.createTask(worker());
      yield* checkpoint();
      if (name === "until") {
        // Cancelled by the same settling, after the task was woken by it.
        yield* checkpoint();
        settled.promise.then(() => {}).then(() => {}).then(() => {}).then(() => task.cancel());
        settled.resolve("there");
      } else {
        end();
        task.cancel();
      }
      yield* task.wait();
      assertEquals(log, [name === "checkpoint" ? undefined : "there", "Cancelled"], name);
    }
  });
});

Deno.test("C4 a socket that is ready, or a time that is up, in the turn of the cancel counts", async () => {
  await simulate(function* ({ loop, world }) {
    for (const how of ["socket", "timer"]) {
      const log: string[] = [];
      const sock = new FakeSocket();
      const lot = new ParkingLot();
      // Wakes first in the same band, and cancels the task that was woken with it.
      function* canceller(): Coroutine {
        if (how === "socket") yield* readWait(sock);
        else yield* sleep(5);
        task.cancel();
      }
      const other = new FakeSocket();
      function* worker(): Coroutine {
        if (how === "socket") yield* readWait(other);
        else yield* sleep(5);
        log.push("there");
        yield* park(lot);
      }
      const first = loop.createTask(canceller());
      const task: Task = loop.createTask(worker());
      yield* checkpoint();
      yield* checkpoint();
      sock.ready = other.ready = 1;
      if (how === "timer") world.hold(5);
      yield* first.join();
      yield* task.wait();
      assertEquals([log, task.cancelled, lot.length], [["there"], true, 0]);
    }
  });
});

Deno.test("C4 a reader that is cancelled leaves the writer of its socket waiting, and the other way round", async () => {
  await simulate(function* ({ loop }) {
    for (
      const [goes, stays, ready] of [[readWait, writeWait, EVENT_WRITE], [writeWait, readWait, EVENT_READ]] as const
    ) {
      const sock = new FakeSocket();
      const gone = loop.createTask(goes(sock));
      const other = loop.createTask(stays(sock));
      yield* checkpoint();
      gone.cancel();
      yield* gone.wait();
      sock.ready = ready;
      yield* failAfter(10, other.join());
    }
  });
});

// ---- C5 ----------------------------------------------------------------------------------------------------------

Deno.test("C5 who cancels itself goes on to its next op", async () => {
  const log: string[] = [];
  await simulate(function* ({ loop }) {
    function* worker(): Coroutine {
      currentTask().cancel("myself");
      log.push("goes on");
      try {
        yield* checkpoint();
      } catch (error) {
        log.push((error as Cancelled).reason as string);
        throw error;
      }
    }
    const task = loop.createTask(worker());
    yield* task.wait();
    assertEquals([log, task.cancelled], [["goes on", "myself"], true]);
  });
});

Deno.test("C5 who cancels itself and has no op to come ends with its value", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask((function* (): Coroutine<number> {
      currentTask().cancel();
      return 1;
    })());
    assertEquals([yield* task.join(), task.cancelled], [1, false]);
  });
});

Deno.test("C5 a task that is cancelled before its first step starts, and releases what it owns", async () => {
  const log: string[] = [];
  await simulate(function* ({ loop }) {
    const sock = { [Symbol.dispose]: () => void log.push("closed") };
    function* handler(): Coroutine {
      using _sock = sock;
      log.push("started");
      yield* sleep(1e6);
      log.push("not reached");
    }
    const task = loop.createTask(handler());
    task.cancel("at once");
    yield* task.wait();
    assertEquals(task.cancelled, true);
  });
  assertEquals(log, ["started", "closed"]);
});

Deno.test("C2 C7 a call in a cancelled scope is refused before it starts, so nothing that it would bring is lost", async () => {
  await simulate(function* () {
    const lock = new Lock();
    let started = false;
    function* down(): Coroutine<Disposable> {
      started = true;
      return yield* shield(lock.acquire());
    }
    const result = yield* cancelScope(function* (scope) {
      scope.cancel();
      while (true) yield* call(down());
    });
    assertEquals([result, started, lock.locked], [undefined, false, false]);
  });
});

Deno.test("C5 a task that is cancelled before its first step begins no wait", async () => {
  await simulate(function* ({ loop }) {
    let called = false;
    const task = loop.createTask(until(() => {
      called = true;
      return Promise.resolve();
    }));
    task.cancel();
    yield* task.wait();
    assertEquals(called, false);
  });
});

// ---- C6 ----------------------------------------------------------------------------------------------------------

Deno.test("C6 a cancelled waiter leaves the lot at once, from any place in it", async () => {
  for (const gone of [[0], [1], [2], [0, 1], [1, 2], [0, 2], [2, 0], [0, 1, 2]]) {
    await simulate(function* ({ loop }) {
      const lot = new ParkingLot<number>();
      const tasks = [0, 1, 2].map(() => loop.createTask(park(lot)));
      yield* checkpoint();
      for (const i of gone) {
        tasks[i].cancel();
        // At once: before it has taken a step.
        assertEquals(lot.length, 3 - gone.indexOf(i) - 1);
      }
      const rest = [0, 1, 2].filter((i) => !gone.includes(i));
      for (const i of rest) assertStrictEquals(lot.unpark(i), tasks[i]);
      assertEquals(lot.unpark(9), null);
      for (const i of rest) assertEquals(yield* tasks[i].join(), i);
    });
  }
});

Deno.test("C6 so does one that a block, or the program, cancels as it takes another op back", async () => {
  await simulate(function* ({ loop }) {
    for (const by of ["the program", "a block"]) {
      const queue = new Queue<string>();
      const aborted = (signal: AbortSignal) =>
        new Promise(() =>
          signal.addEventListener("abort", () => {
            first.cancel();
            assertEquals(first.op, null);
            queue.putNowait("for the second");
          })
        );
      let first!: Task<string>;
      const other = loop.createTask(taskGroup(function* (group): Coroutine {
        group.createTask(until(aborted));
        first = by === "a block" ? group.createTask(queue.get()) : loop.createTask(queue.get());
      }));
      yield* sleep(0);
      yield* sleep(0);
      const second = loop.createTask(queue.get());
      yield* sleep(0);
      other.cancel();
      assertEquals(yield* second.join(), "for the second");
      assert(first.cancelled);
    }
  });
});

Deno.test("C6 the next wake goes to the next waiter: lock, semaphore, condition, queue, event", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    function* says(name: string, wait: () => Coroutine<unknown>): Coroutine {
      yield* wait();
      log.push(name);
    }
    /** Two tasks wait, the first is cancelled, `wake` is for the second, at once. */
    function* next(what: string, wait: () => Coroutine<unknown>, wake: () => void): Coroutine {
      const [first, second] = [1, 2].map((n) => loop.createTask(says(`${what} ${n}`, wait)));
      for (let i = 0; i < 3; i++) yield* checkpoint();
      first.cancel();
      wake();
      yield* first.wait();
      yield* second.join();
      assertEquals([first.cancelled, second.cancelled], [true, false]);
    }
    const lock = new Lock();
    yield* lock.acquire();
    yield* next("lock", () => lock.acquire(), () => lock.release());
    const semaphore = new Semaphore(1);
    yield* semaphore.acquire();
    yield* next("semaphore", () => semaphore.acquire(), () => semaphore.release());
    const condition = new Condition();
    function* waitOn(): Coroutine {
      using _guard = yield* condition.acquire();
      yield* condition.wait();
    }
    function* notify(): Coroutine {
      using _guard = yield* condition.acquire();
      condition.notify();
    }
    yield* next("condition", waitOn, () => loop.createTask(notify()));
    const queue = new Queue<number>();
    yield* next("queue", () => queue.get(), () => queue.putNowait(1));
    const event = new Event();
    yield* next("event", () => event.wait(), () => event.set());
    assertEquals(log, ["lock 2", "semaphore 2", "condition 2", "queue 2", "event 2"]);
  });
});

Deno.test("C6 a cancelled wait for a socket or a timer is gone at once", async () => {
  await simulate(function* ({ loop, world }) {
    const sock = new FakeSocket();
    for (const wait of [() => readWait(sock), () => writeWait(sock), () => sleep(1e6)]) {
      const task = loop.createTask(wait());
      yield* checkpoint();
      assertEquals(world.keys.size + loop._timers.length, 1);
      task.cancel();
      assertEquals(world.keys.size + loop._timers.length, 0);
      yield* task.wait();
    }
  });
});

// ---- C7 ----------------------------------------------------------------------------------------------------------

Deno.test("C7 a cancelled sockRecv leaves the bytes to the next reader, in the simulated world", async () => {
  await simulate(function* ({ loop }) {
    const pipe = new Pipe();
    const task = loop.createTask(loop.sockRecv(pipe, 10));
    yield* checkpoint();
    task.cancel();
    pipe.arrive(1, 2, 3);
    yield* task.wait();
    assertEquals(task.cancelled, true);
    assertEquals(yield* loop.sockRecv(pipe, 10), new Uint8Array([1, 2, 3]));
  });
});

Deno.test("C7 a sockRecv that has its bytes already delivers them though it is cancelled", async () => {
  await simulate(function* ({ loop }) {
    const [pipe, signal] = [new Pipe(), new FakeSocket()];
    function* canceller(): Coroutine {
      yield* readWait(signal);
      task.cancel();
    }
    loop.createTask(canceller());
    const task: Task<Uint8Array> = loop.createTask(loop.sockRecv(pipe, 10));
    yield* checkpoint();
    yield* checkpoint();
    pipe.arrive(1, 2);
    signal.ready = 1;
    assertEquals(yield* task.join(), new Uint8Array([1, 2]));
  });
});

Deno.test("C7 a cancelled sockSendall tells exactly how many bytes were handed over", async () => {
  for (const rooms of [[], [1], [3, 4], [2, 2, 2, 2], [9]]) {
    await simulate(function* ({ loop }) {
      const pipe = new Pipe();
      const data = new Uint8Array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
      const task = loop.createTask(loop.sockSendall(pipe, data));
      let sent = 0;
      for (const room of rooms) {
        pipe.drain(room);
        sent += room;
        while (pipe.sent.length < sent) yield* checkpoint();
      }
      yield* checkpoint();
      task.cancel();
      const error = yield* thrownBy(() => task.join());
      assertEquals(error.cause.bytesSent, sent);
      assertEquals(pipe.sent, [...data.subarray(0, sent)]);
    });
  }
});

Deno.test("C7 a sockSendall that timed out or was cancelled before its first op says 0", async () => {
  await simulate(function* ({ loop }) {
    const pipe = new Pipe();
    const task = loop.createTask(loop.sockSendall(pipe, new Uint8Array(5)));
    task.cancel();
    assertEquals((yield* thrownBy(() => task.join())).cause.bytesSent, 0);
    yield* cancelScope(function* () {
      const error = yield* thrownBy(() => loop.sockSendall(pipe, new Uint8Array(5)));
      assertEquals(error.bytesSent, 0);
      throw error;
    }, { timeout: 5 });
  });
});

Deno.test("C7 a cancelled get leaves the item, a cancelled acquire holds nothing", async () => {
  await simulate(function* () {
    const queue = new Queue<string>();
    yield* cancelledTask(queue.get());
    queue.putNowait("item");
    assertEquals(yield* queue.get(), "item");
    const bounded = new Queue<string>(1);
    bounded.putNowait("first");
    yield* cancelledTask(bounded.put("never"));
    assertEquals([yield* bounded.get(), bounded.size], ["first", 0]);
    const lock = new Lock();
    yield* lock.acquire();
    yield* cancelledTask(lock.acquire());
    lock.release();
    assertEquals(lock.locked, false);
    const semaphore = new Semaphore(2);
    yield* semaphore.acquire();
    yield* semaphore.acquire();
    yield* cancelledTask(semaphore.acquire());
    semaphore.release();
    semaphore.release();
    assertEquals(semaphore.value, 2);
  });
});

Deno.test("C7 a lock that was handed over as its taker was cancelled is not lost", async () => {
  for (const order of ["release, cancel", "cancel, release"]) {
    await simulate(function* ({ loop }) {
      const lock = new Lock();
      const queue = new Queue<number>();
      const guard = yield* lock.acquire();
      function* taker(): Coroutine {
        using _guard = yield* lock.acquire();
        yield* sleep(1);
      }
      const task = loop.createTask(taker());
      const getter = loop.createTask(queue.get());
      yield* checkpoint();
      yield* checkpoint();
      if (order === "cancel, release") [task, getter].map((t) => t.cancel());
      guard[Symbol.dispose]();
      queue.putNowait(1);
      if (order === "release, cancel") [task, getter].map((t) => t.cancel());
      yield* task.wait();
      yield* getter.wait();
      assertEquals(lock.locked, false);
      // Either the getter has the item, or the queue.
      assertEquals(queue.size + (getter.cancelled ? 0 : 1), 1);
    });
  }
});

// ---- C8 ----------------------------------------------------------------------------------------------------------

Deno.test("C8 a shield hides outer scopes only, and the cancel comes at the first op after it", async () => {
  const log: string[] = [];
  function* worker(): Coroutine {
    yield* shield((function* () {
      yield* sleep(50);
      log.push("slept in peace");
      yield* checkpoint();
    })());
    log.push("left the shield");
    yield* checkpoint();
    log.push("not reached");
  }
  await simulate(function* ({ world }) {
    const task = yield* cancelledTask(worker());
    assertEquals([task.cancelled, world.now()], [true, 50]);
  });
  assertEquals(log, ["slept in peace", "left the shield"]);
});

Deno.test("C8 own timeouts inside a shield still fire, before and after the cancel", async () => {
  await simulate(function* ({ world }) {
    const log: unknown[] = [];
    function* worker(): Coroutine {
      yield* shield((function* () {
        log.push(yield* moveOnAfter(20, sleep(100)), world.now());
        log.push((yield* thrownBy(() => failAfter(20, sleep(100)))) instanceof TimeoutError, world.now());
      })());
    }
    const task = yield* cancelledTask(worker());
    assertEquals([log, task.cancelled], [[undefined, 20, true, 40], false]);
  });
});

Deno.test("C8 nested shields restore each other", async () => {
  const log: string[] = [];
  function* worker(): Coroutine {
    yield* shield((function* () {
      yield* shield(sleep(5));
      yield* checkpoint();
      log.push("the outer one still holds");
    })());
    yield* checkpoint();
    log.push("not reached");
  }
  await simulate(function* () {
    const task = yield* cancelledTask(worker());
    assertEquals(task.cancelled, true);
  });
  assertEquals(log, ["the outer one still holds"]);
});

Deno.test("C8 a scope between two shields is hidden from the outside, not from the inside", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    let between: CancelScope | undefined;
    function* worker(): Coroutine {
      yield* shield((function* () {
        yield* cancelScope(function* (scope) {
          between = scope;
          yield* sleep(1e6);
        });
        log.push(`between: ${between!.cancelledCaught}`);
      })());
      yield* checkpoint();
    }
    const task = loop.createTask(worker());
    yield* checkpoint();
    yield* checkpoint();
    task.cancel();
    yield* sleep(5);
    assertEquals(log, []);
    between!.cancel();
    yield* task.wait();
    assertEquals([log, task.cancelled], [["between: true"], true]);
  });
});

Deno.test("C8 a shield that is raised when the wait has been taken back comes too late for that wait", async () => {
  await simulate(function* ({ loop }) {
    const scopes: CancelScope[] = [];
    const error = new Error("not thrown");
    let thrown: unknown = error;
    const task = loop.createTask(cancelScope((outer) =>
      cancelScope(function* (inner) {
        scopes.push(outer, inner);
        thrown = yield* thrownBy(sleep(1000));
        yield* checkpoint(); // in the shield
        throw thrown;
      })
    ));
    yield* checkpoint();
    scopes[0].cancel("why");
    scopes[1].shield = true;
    yield* task.join();
    assertInstanceOf(thrown, Cancelled);
    assertEquals([thrown.reason, loop.time()], ["why", 0]);
    assertEquals(scopes.map((scope) => scope.cancelledCaught), [true, false]);
  });
});

Deno.test("C8 lifting a shield delivers at once, raising one hides at once", async () => {
  await simulate(function* ({ loop, world }) {
    let scope: CancelScope | undefined;
    function* worker(): Coroutine {
      yield* cancelScope(function* (own) {
        scope = own;
        yield* sleep(1000);
      }, { shield: true });
    }
    const task = loop.createTask(worker());
    yield* checkpoint();
    task.cancel();
    yield* sleep(10);
    assertEquals(task.done, false);
    scope!.shield = false;
    yield* task.wait();
    assertEquals([task.cancelled, world.now()], [true, 10]);

    yield* cancelScope(function* (outer) {
      yield* cancelScope(function* (inner) {
        outer.cancel();
        inner.shield = true;
        yield* checkpoint();
        inner.shield = false;
        assertInstanceOf(yield* thrownBy(checkpoint), Cancelled);
        inner.shield = true;
        yield* checkpoint();
      });
    });
  });
});

Deno.test("C8 shield with a timeout bounds cleanup", async () => {
  await simulate(function* ({ world }) {
    const log: unknown[] = [];
    function* worker(): Coroutine {
      try {
        yield* sleep(1e6);
      } finally {
        log.push(yield* shield(sleep(1e6), { timeout: 30 }), world.now());
      }
    }
    const task = yield* cancelledTask(worker());
    assertEquals([log, task.cancelled], [[undefined, 30], true]);
  });
});

Deno.test("C8 a task that is cancelled as its op lets a deadline outside its shield expire begins no wait", async () => {
  await simulate(function* ({ loop, world }) {
    let task!: Task;
    yield* cancelScope(function* (scope) {
      const cancelling = new Promise(() => {});
      loop.createTask(
        until((signal) => {
          signal.addEventListener("abort", () => task.cancel());
          return cancelling;
        }),
        { scope },
      );
      yield* cancelScope(function* (hidden) {
        task = loop.createTask(
          (function* () {
            world.hold(20);
            yield* sleep(1e6);
          })(),
          { scope: hidden },
        );
        yield* task.wait();
      }, { shield: true });
    }, { timeout: 10 });
    assertEquals([task.cancelled, world.now()], [true, 20]);
  });
});

// ---- C9 ----------------------------------------------------------------------------------------------------------

Deno.test("C9 a scope absorbs its own Cancelled, and says so", async () => {
  await simulate(function* () {
    let scope!: CancelScope;
    const result = yield* cancelScope(function* (own) {
      scope = own;
      assertEquals([own.cancelCalled, own.cancelledCaught], [false, false]);
      own.cancel("enough");
      assertEquals([own.cancelCalled, own.cancelledCaught], [true, false]);
      yield* checkpoint();
      return "not reached";
    });
    assertEquals([result, scope.cancelCalled, scope.cancelledCaught], [undefined, true, true]);
    yield* checkpoint();
  });
});

Deno.test("C9 of nested scopes each catches its own", async () => {
  for (const which of [0, 1, 2]) {
    await simulate(function* () {
      const scopes: CancelScope[] = [];
      function* level(n: number): Coroutine {
        yield* cancelScope(function* (own) {
          scopes[n] = own;
          if (n < 2) yield* level(n + 1);
          else scopes[which].cancel();
          yield* checkpoint();
        });
      }
      yield* level(0);
      assertEquals(scopes.map((scope) => scope.cancelledCaught), [0, 1, 2].map((n) => n === which));
    });
  }
});

Deno.test("C9 the Cancelled of an outer scope passes through, also one that came while the inner was unwinding", async () => {
  await simulate(function* () {
    const log: string[] = [];
    yield* cancelScope(function* (outer) {
      yield* cancelScope(function* (inner) {
        try {
          inner.cancel();
          yield* checkpoint();
        } finally {
          outer.cancel();
        }
      });
      log.push("the inner one has caught its own");
      yield* checkpoint();
      log.push("not reached");
    });
    assertEquals(log, ["the inner one has caught its own"]);
  });
});

Deno.test("C9 a block and one around it are cancelled before the task steps: it is thrown the outer's", async () => {
  await simulate(function* ({ loop }) {
    const scopes: CancelScope[] = [];
    const task = loop.createTask(cancelScope((outer) =>
      cancelScope((inner) => {
        scopes.push(outer, inner);
        return sleep(1000);
      })
    ));
    yield* checkpoint();
    scopes[1].cancel("inner");
    scopes[0].cancel("outer");
    yield* task.join();
    assertEquals(scopes.map((scope) => scope._caught?.reason), ["outer", undefined]);
  });
});

Deno.test("C9 a cancelled scope left without an op delivers nothing later", async () => {
  await simulate(function* () {
    let scope!: CancelScope;
    const result = yield* cancelScope(function* (own) {
      scope = own;
      own.cancel();
      return "value";
    });
    yield* checkpoint();
    yield* sleep(1);
    scope.cancel("again");
    yield* sleep(1);
    assertEquals([result, scope.cancelCalled, scope.cancelledCaught], ["value", true, false]);
  });
});

Deno.test("C9 a scope whose block ended by an error of its own has caught nothing", async () => {
  await simulate(function* () {
    let scope!: CancelScope;
    for (const error of [new Error("own"), null]) {
      const thrown = yield* thrownBy(() =>
        cancelScope(function* (own) {
          scope = own;
          own.cancel();
          try {
            yield* checkpoint();
          } catch {
            throw error;
          }
        })
      );
      assertStrictEquals(thrown, error);
      assertEquals(scope.cancelledCaught, false);
    }
  });
});

Deno.test("C9 a Cancelled from elsewhere is an error like any other", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    let kept: unknown;
    yield* cancelScope(function* (scope) {
      scope.cancel("kept");
      kept = yield* thrownBy(checkpoint);
      throw kept;
    });
    const task = loop.createTask((function* (): Coroutine {
      throw kept;
    })());
    yield* task.wait();
    assertEquals([task.cancelled, task.error], [false, kept]);
    const error = yield* thrownBy(() => task.join());
    assertInstanceOf(error, TaskError);
    assertEquals([error.message, error.cause], [
      `Cannot join ${task}: it failed with a Cancelled of something else`,
      kept,
    ]);
  }, { errors });
  assertEquals(errors.length, 1);
});

Deno.test("C9 many scopes with one signal are one listener to it, and its abort cancels those that are left", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  const counts = { addEventListener: 0, removeEventListener: 0 };
  for (const name of ["addEventListener", "removeEventListener"] as const) {
    const original = signal[name];
    signal[name] = (...args: Parameters<typeof original>) => {
      counts[name]++;
      original.apply(signal, args);
    };
  }
  let cancelled = 0;
  function* idle(ms: number): Coroutine<void> {
    if ((yield* cancelScope(() => after(ms), { signal })) === undefined) cancelled++;
  }
  await simulate(function* ({ loop }) {
    yield* taskGroup(function* (group) {
      for (let i = 0; i < 100; i++) group.createTask(idle(i % 2 === 0 ? 5 : 1000));
      yield* sleep(10);
      assertEquals(counts, { addEventListener: 1, removeEventListener: 0 });
      controller.abort();
    });
    assertEquals([cancelled, loop.time()], [50, 10]);
  });
  assertEquals(counts, { addEventListener: 1, removeEventListener: 1 });

  function* after(ms: number): Coroutine<true> {
    yield* sleep(ms);
    return true;
  }
});

Deno.test("C9 a block that ends after its cancel does not take the signal from one that has begun meanwhile", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  await simulate(function* ({ loop }) {
    const other = yield* cancelScope(function* (scope): Coroutine<Task> {
      scope.cancel(); // Nobody listens any more.
      const other = loop.createTask(cancelScope(() => sleep(1000), { signal }));
      yield* shield(checkpoint());
      return other;
    }, { signal });
    controller.abort();
    yield* other!.join();
    assertEquals(loop.time(), 0);
  });
});

Deno.test("C9 a scope with a signal is cancelled when that aborts, with its reason, and listens no longer than it lasts", async () => {
  const { loop, world } = simulation();
  const controller = new AbortController();
  const { signal } = controller;
  let listeners = 0;
  const { addEventListener, removeEventListener } = signal;
  signal.addEventListener = (...args: Parameters<typeof addEventListener>) => {
    listeners++;
    addEventListener.apply(signal, args);
  };
  signal.removeEventListener = (...args: Parameters<typeof removeEventListener>) => {
    listeners--;
    removeEventListener.apply(signal, args);
  };
  await loop.run((function* (): Coroutine<void> {
    assertEquals(yield* cancelScope(() => ended(5), { signal }), 5);
    assertEquals(listeners, 0);
    let own!: CancelScope;
    function* idle(scope: CancelScope): Coroutine<void> {
      own = scope;
      yield* new Event().wait(); // Nothing but the signal can end this, and it is no deadlock.
    }
    world.autojump = false;
    setImmediate(() => controller.abort("shut down"));
    assertEquals(yield* cancelScope(idle, { signal }), undefined);
    assertEquals([listeners, own._caught?.reason], [0, "shut down"]);
    const begun: string[] = [];
    yield* cancelScope(function* () { // It has aborted already: the first op throws.
      begun.push("begun");
      yield* checkpoint();
      begun.push("not reached");
    }, { signal });
    assertEquals(begun, ["begun"]);
    world.autojump = true;
    assertThrows(() => cancelScope(idle, { signal: 5 as never }), TypeError, "with the signal 5");
  })());
  function* ended(value: number): Coroutine<number> {
    yield* checkpoint();
    return value;
  }
  // That is over: what waits for nothing else is stuck again, and so is who is cancelled already and cannot be once more.
  const never = new AbortController().signal;
  function* dropped(): Coroutine<void> {
    cancelScope(() => sleep(1000), { signal: never }).next(); // by hand, and not to its end
    yield* checkpoint();
  }
  function* afterAbort(): Coroutine<void> {
    const soon = new AbortController();
    setImmediate(() => soon.abort());
    yield* cancelScope(() => new Event().wait(), { signal: soon.signal });
    yield* new Event().wait();
  }
  function* cleanup(scope: CancelScope): Coroutine<void> {
    scope.cancel();
    yield* shield(new Event().wait());
  }
  await assertRejects(() => loop.run(new Event().wait()), DeadlockError);
  await assertRejects(() => loop.run(afterAbort()), DeadlockError);
  await assertRejects(() => loop.run(afterDropped()), DeadlockError);
  await assertRejects(() => simulation().loop.run(cancelScope(cleanup, { signal: never })), DeadlockError);
  function* afterDropped(): Coroutine<void> {
    yield* loop.createTask(dropped()).wait();
    yield* new Event().wait();
  }
});

Deno.test("C9 a scope that ends restores the task's, and refuses tasks from then on", async () => {
  await simulate(function* ({ loop }) {
    let scope!: CancelScope;
    yield* cancelScope(function* (own) {
      scope = own;
      yield* checkpoint();
    });
    assertThrows(() => loop.createTask(sleep(1), { scope }), Error, "its block has ended");
    yield* checkpoint();
  });
});

Deno.test("C9 a deadline that is set when the block has ended leaves no timer", async () => {
  await simulate(function* ({ loop }) {
    let scope!: CancelScope;
    yield* cancelScope(function* (own) {
      scope = own;
      yield* checkpoint();
    });
    scope.deadline = 1000;
    assertEquals([scope.deadline, loop._timers.length], [1000, 0]);
  });
});

Deno.test("C9 a task whose cleanup cancels what is around it has ended by its own cancellation all the same", async () => {
  await simulate(function* () {
    yield* cancelScope(function* (scope) {
      const task = currentTask().loop.createTask(
        (function* () {
          try {
            yield* sleep(1000);
          } finally {
            scope.cancel("from within");
          }
        })(),
        { scope },
      );
      yield* checkpoint();
      task.cancel("first");
      yield* shield(task.wait());
      assertEquals([task.cancelled, task.error, scope.cancelCalled], [true, undefined, true]);
    });
  });
});

Deno.test("C9 blocks that a task has outlived go with it, each that is empty by then", async () => {
  await simulate(function* ({ loop }) {
    yield* cancelScope(function* (outermost) {
      const tasks: Task[] = [];
      yield* cancelScope(() =>
        cancelScope(function* (scope) {
          tasks.push(loop.createTask(sleep(1), { scope }));
          yield* checkpoint();
        })
      );
      assert(outermost._first !== null);
      yield* tasks[0].wait();
      assertStrictEquals(outermost._first, null);
    });
  });
});

Deno.test("C9 a deadline that is none is refused where it was written, and leaves nothing behind", async () => {
  await simulate(function* ({ loop }) {
    function* body(): Coroutine {}
    for (const timeout of [-1, NaN, "1"] as number[]) assertThrows(() => cancelScope(body, { timeout }), RangeError);
    assertThrows(() => cancelScope(body, { deadline: NaN }), RangeError);
    yield* cancelScope(function* (scope) {
      assertThrows(() => scope.deadline = NaN, RangeError);
      yield* checkpoint();
    });
    yield* cancelScope(function* (scope) {
      scope.deadline = loop.time() + 5;
      assertThrows(() => scope.deadline = NaN, RangeError);
      yield* sleep(10);
      throw "the deadline that was set before was lost";
    });
    assertEquals(loop._timers.length, 0);
  });
});

// ---- C10 ---------------------------------------------------------------------------------------------------------

Deno.test("C10 an error thrown by cleanup is the outcome, names the Cancelled as its cause, and is reported once", async () => {
  const errors: Simulation["errors"] = [];
  const error = new Error("cleanup failed");
  await simulate(function* () {
    function* worker(): Coroutine {
      try {
        yield* sleep(1e6);
      } catch {
        throw error;
      }
    }
    const task = yield* cancelledTask(worker(), "why");
    assertEquals(task.cancelled, false);
    assertStrictEquals(yield* thrownBy(() => task.join()), error);
    assertInstanceOf(error.cause, Cancelled);
    assertEquals(error.cause.reason, "why");
    yield* sleep(1);
  }, { errors });
  assertEquals(errors.map((e) => e.error), [error]);
});

Deno.test("C10 what stands for the undefined that cleanup has thrown names the Cancelled, too", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* () {
    const task = yield* cancelledTask((function* (): Coroutine {
      try {
        yield* sleep(1e6);
      } catch {
        throw undefined;
      }
    })());
    const error = yield* thrownBy(() => task.join());
    assertInstanceOf(error, TaskError);
    assertInstanceOf(error.cause, Cancelled);
  }, { errors });
  assertEquals(errors.length, 1);
});

Deno.test("C10 an error keeps the cause it has; what is no error, or frozen, stays as it is", async () => {
  const cause = new Error("a cause of its own");
  class NoCause extends Error {
    override get cause(): undefined {
      return undefined;
    }
  }
  const frozen = Object.freeze(new Error("frozen"));
  const ofNull = new Error("of null", { cause: null });
  const plain = {};
  for (const thrown of [new Error("x", { cause }), ofNull, frozen, new NoCause(), plain, "a string", 0]) {
    const errors: Simulation["errors"] = [];
    await simulate(function* () {
      const task = yield* cancelledTask((function* (): Coroutine {
        try {
          yield* sleep(1e6);
        } catch {
          throw thrown;
        }
      })());
      assertStrictEquals(yield* thrownBy(() => task.join()), thrown);
    }, { errors });
    assertEquals(errors.length, 1);
    if (thrown instanceof Error && thrown.message === "x") assertStrictEquals(thrown.cause, cause);
  }
  assertStrictEquals(ofNull.cause, null);
  assertEquals(plain, {});
});

Deno.test("C10 an error, or the Cancelled, that a cancelled task returns is a value like any other", async () => {
  await simulate(function* () {
    const error = new Error("a value");
    const failed = yield* cancelledTask((function* () {
      yield* thrownBy(sleep(1e6));
      return error;
    })());
    assertStrictEquals(failed.result(), error);
    assertEquals(error.cause, undefined);
    const cancelled = yield* cancelledTask(thrownBy(sleep(1e6)));
    assertInstanceOf(cancelled.result(), Cancelled);
    assertEquals([failed.cancelled, cancelled.cancelled], [false, false]);
  });
});

Deno.test("C10 of two cancellations that a task was thrown the later is the cause", async () => {
  await simulate(function* ({ loop }) {
    const error = new Error("in the end");
    yield* cancelScope(function* (scope) {
      const task = loop.createTask(
        (function* () {
          yield* thrownBy(sleep(1000));
          scope.cancel("second");
          yield* thrownBy(sleep(1000));
          throw error;
        })(),
        { scope },
      );
      yield* checkpoint();
      task.cancel("first");
      assertStrictEquals(yield* thrownBy(shield(task.join())), error);
    });
    assertEquals((error.cause as Cancelled).reason, "second");
  });
});

Deno.test("C10 an error that no cancellation led to gets no cause", async () => {
  const errors: Simulation["errors"] = [];
  const error = new Error("before any op");
  await simulate(function* ({ loop }) {
    const task = loop.createTask((function* (): Coroutine {
      throw error;
    })());
    task.cancel();
    yield* task.wait();
  }, { errors });
  assertEquals("cause" in error, false);
  assertEquals(errors.length, 1);
});

Deno.test("C10 an error is not blamed on the cancellation that it led to itself", async () => {
  for (const joiner of ["the body", "a sibling"]) {
    const error = new Error(joiner);
    const thrown = await simulate(() =>
      thrownBy(taskGroup(function* (group) {
        const failing = group.createTask((function* (): Coroutine {
          yield* sleep(1);
          throw error;
        })());
        function* joining(): Coroutine {
          try {
            yield* failing.join();
          } finally {
            yield* thrownBy(sleep(1)); // A farewell that may fail.
          }
        }
        if (joiner === "a sibling") group.createTask(joining());
        else yield* joining();
      }))
    );
    assertStrictEquals(thrown, error);
    assertEquals(error.cause, undefined);
  }
});

Deno.test("C10 the cause is the cancellation of the task, not a timeout that came to nothing", async () => {
  const errors: Simulation["errors"] = [];
  const unled = new Error("thrown before the cancellation was");
  const led = new Error("thrown in its wake");
  await simulate(function* ({ loop }) {
    const hasty = loop.createTask((function* (): Coroutine {
      yield* moveOnAfter(1, sleep(10));
      currentTask().cancel();
      throw unled;
    })());
    yield* hasty.wait();
    yield* cancelledTask(
      (function* (): Coroutine {
        try {
          yield* sleep(1e6);
        } catch {
          yield* shield(sleep(10), { timeout: 1 });
          throw led;
        }
      })(),
      "enough",
    );
  }, { errors });
  assertEquals(unled.cause, undefined);
  assertInstanceOf(led.cause, Cancelled);
  assertEquals(led.cause.reason, "enough");
  assertEquals(errors.length, 2);
});

Deno.test("C10 what fails when a shield has lifted its cancellation is not blamed on that", async () => {
  const errors: Simulation["errors"] = [];
  const error = new Error("much later");
  await simulate(function* ({ loop }) {
    yield* cancelScope((outer) =>
      cancelScope(function* (inner) {
        function* failing(): Coroutine {
          yield* thrownBy(sleep(1e6));
          inner.shield = true;
          yield* sleep(1);
          throw error;
        }
        const task = loop.createTask(failing(), { scope: inner });
        yield* checkpoint();
        outer.cancel();
        yield* shield(task.wait());
      })
    );
  }, { errors });
  assertEquals(errors.map((e) => e.error), [error]);
  assertEquals("cause" in error, false);
});

Deno.test("C10 an error of shielded cleanup is the outcome, too, and later cleanup still runs", async () => {
  const errors: Simulation["errors"] = [];
  const log: string[] = [];
  await simulate(function* () {
    function* worker(): Coroutine {
      try {
        try {
          yield* sleep(1e6);
        } finally {
          yield* shield((function* () {
            yield* sleep(1);
            throw new Error("inner cleanup");
          })());
        }
      } finally {
        yield* shield(sleep(1));
        log.push("outer cleanup");
      }
    }
    const task = yield* cancelledTask(worker());
    assertEquals((task.error as Error).message, "inner cleanup");
    assertInstanceOf((task.error as Error).cause, Cancelled);
  }, { errors });
  assertEquals([log, errors.length], [["outer cleanup"], 1]);
});

Deno.test("C10 an error of cleanup that outlives main is blamed on the cancellation that began it", async () => {
  const errors: Simulation["errors"] = [];
  await simulate(function* ({ loop }) {
    function* worker(): Coroutine {
      try {
        yield* sleep(1e6);
      } catch {
        yield* shield(sleep(20));
        throw new Error("cleanup");
      }
    }
    const task = loop.createTask(worker());
    yield* checkpoint();
    task.cancel("by hand");
    yield* sleep(5); // The end of main cancels everything, with another reason.
  }, { errors });
  assertEquals(errors.map(({ error }) => ((error as Error).cause as Cancelled).reason), ["by hand"]);
});

Deno.test("C10 a timeout in the cleanup of a block does not hide what cancelled the block", async () => {
  const error = new Error("cleanup");
  await simulate(function* () {
    function* body(scope: CancelScope): Coroutine {
      scope.cancel("by hand");
      try {
        yield* sleep(1e6);
      } catch {
        yield* shield(sleep(1e6), { timeout: 1 });
        throw error;
      }
    }
    assertStrictEquals(yield* thrownBy(() => cancelScope(body)), error);
  });
  assertEquals((error.cause as Cancelled).reason, "by hand");
});

Deno.test("C10 a cancellation that comes while a block cleans up after its own is not blamed on that", async () => {
  await simulate(function* ({ loop }) {
    const task: Task = loop.createTask(cancelScope(function* (scope): Coroutine {
      scope.cancel("inner");
      try {
        yield* sleep(1e6);
      } finally {
        task.cancel("outer");
        yield* sleep(1e6);
      }
    }));
    const { cause } = yield* thrownBy(() => task.join());
    assertEquals([cause.reason, cause.cause], ["outer", undefined]);
  });
});

Deno.test("C10 an error of a block that was cancelled but never thrown that gets no cause", async () => {
  const error = new Error("of the block itself");
  await simulate(function* () {
    const body = function* (scope: CancelScope): Coroutine {
      yield* checkpoint();
      scope.cancel();
      throw error;
    };
    assertEquals(yield* thrownBy(cancelScope(body)), error);
  });
  assertEquals("cause" in error, false);
});

// ---- C11 ---------------------------------------------------------------------------------------------------------

Deno.test("C11 join of a cancelled task throws TaskError with the Cancelled as cause", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask(sleep(1e6), { name: "sleeper" });
    yield* checkpoint();
    task.cancel("tired");
    for (const when of ["before its end", "after it"]) {
      const error = yield* thrownBy(() => task.join());
      assertInstanceOf(error, TaskError, when);
      assertInstanceOf(error.cause, Cancelled);
      assertEquals(error.cause.reason, "tired");
      assertStringIncludes(error.message, "sleeper");
    }
    const other = loop.createTask(task.join());
    assertInstanceOf(yield* thrownBy(() => other.join()), TaskError);
    assertEquals(other.cancelled, false);
  });
});

Deno.test("C11 a joiner that is cancelled itself gets Cancelled, and the task it joined runs on", async () => {
  await simulate(function* ({ loop }) {
    const task = loop.createTask((function* () {
      yield* sleep(10);
      return "done";
    })());
    const joiner = yield* cancelledTask(task.join());
    assertEquals([joiner.cancelled, task.done], [true, false]);
    assertEquals(yield* task.join(), "done");
  });
});

// ---- Many at once ------------------------------------------------------------------------------------------------

Deno.test("C3 a tree of tasks far deeper than the stack is cancelled as one, and leaves nothing behind", async () => {
  const DEPTH = 5000;
  await simulate(function* ({ loop, world }) {
    let scope!: CancelScope;
    function* level(n: number): Coroutine {
      if (n === 0) return yield* sleep(1e9);
      yield* taskGroup(function* (group) {
        group.createTask(level(n - 1));
        yield* sleep(1e9);
      });
    }
    const root = loop.createTask(cancelScope(function* (own) {
      scope = own;
      yield* level(DEPTH);
    }));
    yield* sleep(1);
    for (let i = 0; i < 3 * DEPTH; i++) yield* checkpoint();
    assertEquals([...loop.tasks].length, DEPTH + 2);
    scope.deadline = 100;
    yield* root.join();
    assertEquals([[...loop.tasks].length, world.now(), scope.cancelledCaught], [1, 100, true]);
    assertEquals(loop._timers.length, 0);
  });
});

Deno.test("C3 a cancellation reaches every task, though taking back the op of one cancels others", async () => {
  for (const inBlock of [false, true]) {
    for (let whom = 0; whom < 6; whom++) {
      await simulate(function* ({ loop, world }) {
        const tasks: Task[] = [];
        const wrap = (coro: Coroutine<any>) => inBlock ? cancelScope(() => coro) : coro;
        const cancelling = until((signal) =>
          new Promise(() => signal.addEventListener("abort", () => tasks[whom].cancel("on the way")))
        );
        yield* cancelScope(function* (scope) {
          tasks[0] = loop.createTask(
            taskGroup(function* (group) {
              tasks[1] = group.createTask(wrap(sleep(1e6)));
              tasks[2] = group.createTask(wrap(cancelling));
              tasks[3] = group.createTask(wrap(sleep(1e6)));
              tasks[4] = group.createTask(wrap(sleep(1e6)));
              yield* sleep(1e6);
            }),
            { scope },
          );
          tasks[5] = loop.createTask(wrap(sleep(1e6)), { scope });
          yield* sleep(1);
          scope.cancel();
        });
        for (const task of tasks) yield* task.wait();
        assertEquals(
          [tasks.map((task) => task.cancelled), world.now()],
          [Array(6).fill(true), 1],
          `${inBlock} ${whom}`,
        );
        assertEquals([[...loop.tasks].length, loop._timers.length], [1, 0]);
      });
    }
  }
});

Deno.test("C2 a raw yield is a place to be cancelled like any other", async () => {
  await simulate(function* () {
    const task = yield* cancelledTask((function* (): Coroutine {
      yield ["sleep", 1e6] as Op;
    })());
    assertEquals(task.cancelled, true);
  });
});

/** A random program: blocks within blocks, each counted when it is entered and when it is left. */
class RandomProgram {
  entered = 0;
  left = 0;
  readonly #scopes: CancelScope[] = [];
  readonly #tasks: Task[] = [];
  readonly #lot = new ParkingLot();
  readonly #lock = new Lock();
  #seed: number;

  constructor(seed: number) {
    this.#seed = seed * 7919 + 1;
  }

  #random(n: number): number {
    this.#seed = (this.#seed * 48271) % 0x7fffffff;
    return Math.floor((this.#seed / 0x7fffffff) * n);
  }

  *block(depth: number): Coroutine {
    this.entered++;
    try {
      for (let i = this.#random(4); i >= 0; i--) yield* this.#statement(depth);
    } catch (error) {
      if (!(error instanceof TimeoutError || error instanceof TaskError)) throw error;
    } finally {
      if (this.#random(3) === 0) yield* shield(sleep(this.#random(5)), { timeout: 3 });
      this.left++;
    }
  }

  *#statement(depth: number): Coroutine {
    const inner = (): Coroutine => depth > 0 ? this.block(depth - 1) : sleep(this.#random(20));
    switch (this.#random(14)) {
      case 0:
        return yield* checkpoint();
      case 1:
        return yield* sleep(this.#random(10));
      case 2:
        return yield* failAfter(this.#random(15), inner());
      case 3:
        return void (yield* moveOnAfter(this.#random(15), inner()));
      case 4:
        return yield* shield(inner());
      case 5:
      case 6: {
        const options = { shield: this.#random(4) === 0, timeout: this.#random(30) };
        return void (yield* cancelScope((scope) => (this.#scopes.push(scope), inner()), options));
      }
      case 7:
      case 8:
        return yield* this.#group(inner);
      case 9:
        return this.#pick(this.#scopes)?.cancel(this.#random(100));
      case 10:
        return this.#pick(this.#tasks)?.cancel(this.#random(100));
      case 11: {
        const scope = this.#pick(this.#scopes);
        if (!scope) return;
        if (this.#random(2)) scope.shield = !scope.shield;
        else scope.deadline = currentTask().loop.time() + this.#random(20) - 5;
        return;
      }
      case 12:
        return yield* failAfter(5, park(this.#lot));
      default: {
        if (this.#lock.held) return;
        using _guard = yield* this.#lock.acquire();
        return yield* sleep(this.#random(3));
      }
    }
  }

  #group(inner: () => Coroutine): Coroutine {
    return taskGroup((group) => this.#members(group, inner));
  }

  *#members(group: TaskGroup, inner: () => Coroutine): Coroutine {
    for (let i = this.#random(3); i >= 0; i--) this.#tasks.push(group.createTask(inner()));
    if (this.#random(3) === 0) group.cancel();
    if (this.#random(2)) yield* inner();
    this.#lot.unpark();
  }

  #pick<T>(from: T[]): T | undefined {
    return from[this.#random(from.length)];
  }

  /** Whether the lock is free. */
  get clean(): boolean {
    return !this.#lock.locked && this.#lot.length === 0;
  }
}

Deno.test("C1 to C9 five hundred random programs leave every block, and nothing behind", async () => {
  let cancelled = 0;
  for (let seed = 1; seed <= 500; seed++) {
    const program = new RandomProgram(seed);
    await simulate(function* ({ loop, world }) {
      const task = loop.createTask(program.block(5), { name: `program ${seed}` });
      if (seed % 3 === 0) {
        yield* moveOnAfter(seed % 40, task.wait());
        task.cancel("enough");
      }
      yield* task.wait();
      if (task.cancelled) cancelled++;
      assertEquals(
        [task.error, [...loop.tasks].length, loop._timers.length, loop._parked],
        [undefined, 1, 0, 0],
        `${seed}`,
      );
      assertEquals([...currentTask()._parent._walk()].length, 2, `${seed}`);
      assertEquals([program.left, program.clean, world.keys.size], [program.entered, true, 0], `${seed}`);
    });
  }
  assert(cancelled > 20, `only ${cancelled} were cancelled`);
});
