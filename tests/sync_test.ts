/**
 * Events, locks, semaphores, conditions and queues: the rules S and C6.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import {
  all,
  Cancelled,
  checkpoint,
  ClosedError,
  Condition,
  type Coroutine,
  DeadlockError,
  Event,
  failAfter,
  LifoQueue,
  Lock,
  type Loop,
  moveOnAfter,
  PriorityQueue,
  Queue,
  type QueueItems,
  Semaphore,
  sleep,
  type Task,
  taskGroup,
  until,
  WouldBlock,
} from "../mod.ts";
import { runWithGc } from "./heap.ts";
import { needs } from "./permissions.ts";
import { platformTurn, simulate, simulation, thrownBy } from "./world.ts";

/** Lets every task go as far as it can without time passing. */
function* settle(): Coroutine<void> {
  for (let i = 0; i < 10; i++) yield* checkpoint();
}

// ---- Event -----------------------------------------------------------------------------------------------------

Deno.test("S1 an event wakes all that wait, in the order they came, and stays set", async () => {
  await simulate(function* ({ loop }) {
    const event = new Event();
    const log: number[] = [];
    for (let i = 0; i < 3; i++) {
      loop.createTask((function* () {
        yield* event.wait();
        log.push(i);
      })());
    }
    yield* settle();
    assertEquals([log, event.isSet], [[], false]);
    event.set();
    event.set();
    yield* checkpoint();
    assertEquals([log, event.isSet], [[0, 1, 2], true]);
    yield* event.wait();
    event.clear();
    assertFalse(event.isSet);
    assertEquals(
      yield* moveOnAfter(
        10,
        (function* () {
          yield* event.wait();
          return "set";
        })(),
      ),
      undefined,
    );
  });
});

Deno.test("S1 an event that is set and cleared at once has woken who waited", async () => {
  await simulate(function* ({ loop }) {
    const event = new Event();
    const task = loop.createTask(event.wait());
    yield* checkpoint();
    event.set();
    event.clear();
    yield* task.join();
  });
});

Deno.test("S1 an event set between the making of the wait and its start is seen", async () => {
  await simulate(function* ({ loop }) {
    const event = new Event();
    const task = loop.createTask(event.wait());
    event.set();
    yield* failAfter(10, task.join());
    const queue = new Queue<number>();
    const joiner = queue.join();
    queue.putNowait(1);
    assertEquals(yield* moveOnAfter(10, joiner), undefined);
    assertEquals(loop.time(), 10);
  });
});

Deno.test("S1 waiting for what is there already is a turn for others too", async () => {
  await simulate(function* ({ loop }) {
    const event = new Event();
    event.set();
    const log: string[] = [];
    const queue = new Queue<number>(9);
    const lock = new Lock();
    const semaphore = new Semaphore(9);
    const other = loop.createTask((function* () {
      for (let i = 0;; i++) {
        log.push(`other ${i}`);
        yield* checkpoint();
      }
    })());
    const steps: [string, () => Coroutine<unknown>][] = [
      ["wait", () => event.wait()],
      ["put", () => queue.put(1)],
      ["get", () => queue.get()],
      ["lock", () => lock.acquire()],
      ["slot", () => semaphore.acquire()],
    ];
    for (const [name, step] of steps) {
      yield* step();
      log.push(name);
    }
    assertEquals(log, [
      ...["other 0", "wait", "other 1", "put", "other 2", "get", "other 3", "lock", "other 4", "slot"],
    ]);
    other.cancel();
    lock.release();
  });
});

Deno.test("S1 10^5 tasks that wait for one event are woken in one turn", async () => {
  await simulate(function* ({ loop, world }) {
    const event = new Event();
    let woken = 0;
    function* waiter(): Coroutine<void> {
      yield* event.wait();
      woken++;
    }
    for (let i = 0; i < 100_000; i++) loop.createTask(waiter());
    yield* sleep(1);
    const turns = () => world.counts.poll + world.counts.select;
    const before = turns();
    event.set();
    assertEquals(woken, 0);
    yield* checkpoint();
    assertEquals([woken, loop.time()], [100_000, 1]);
    // One turn of the loop; its selector may look once more on the way.
    assert(turns() - before <= 2);
  });
});

// ---- Lock ------------------------------------------------------------------------------------------------------

Deno.test("S1 a lock is handed to who has waited longest, and nobody gets in between", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const log: string[] = [];
    function* user(name: string): Coroutine<void> {
      using _guard = yield* lock.acquire();
      log.push(name);
      yield* checkpoint();
    }
    const guard = yield* lock.acquire();
    loop.createTask(user("a"));
    loop.createTask(user("b"));
    yield* checkpoint();
    guard[Symbol.dispose]();
    assert(lock.locked); // It is a's already,
    assertFalse(lock.held);
    yield* user("barger"); // so this one queues behind b.
    assertEquals(log, ["a", "b", "barger"]);
    assertFalse(lock.locked);
  });
});

Deno.test("S1 a greedy task that takes the lock again and again does not starve another", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const log: string[] = [];
    function* greedy(name: string): Coroutine<void> {
      for (let i = 0; i < 3; i++) {
        using _guard = yield* lock.acquire();
        log.push(name);
      }
    }
    yield* all([greedy("a"), greedy("b")]);
    assertEquals(log.join(""), "ababab");
    assertEquals([...loop.tasks].length, 1);
  });
});

Deno.test("S2 a guard releases on every way out", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const semaphore = new Semaphore(2);
    function* ways(way: string): Coroutine<string> {
      for (;;) {
        using _guard = yield* lock.acquire();
        using _slot = yield* semaphore.acquire();
        if (way === "return") return way;
        if (way === "break") break;
        if (way === "throw") throw new Error(way);
        yield* sleep(1000);
      }
      return way;
    }
    for (const way of ["return", "break", "throw", "cancel", "timeout"]) {
      const task = loop.createTask(way === "timeout" ? moveOnAfter(5, ways(way)) : ways(way));
      task.addDoneCallback(() => {}); // takes charge of the error
      yield* sleep(1);
      if (way === "cancel") task.cancel();
      yield* failAfter(10, task.wait());
      assertEquals([lock.locked, semaphore.value], [false, 2], way);
    }
  });
});

Deno.test("S2 releasing what is not held is an error, a second acquire by the holder too", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    assertThrows(() => lock.release(), Error, "Cannot release the lock: the current task does not hold it");
    yield* lock.acquire();
    const error = yield* thrownBy(lock.acquire());
    assertEquals(error.message, 'Cannot acquire the lock: task 1 "main" holds it already');
    const other = loop.createTask((function* () {
      assertThrows(() => lock.release(), Error, "does not hold it");
    })());
    yield* other.join();
    assert(lock.held);
    lock.release();
    assertThrows(() => lock.release(), Error);
    assertEquals([lock.locked, lock.held], [false, false]);
  });
});

Deno.test("S2 a guard releases once, and never what another task holds", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const guard = yield* lock.acquire();
    const other = loop.createTask((function* () {
      using _guard = yield* lock.acquire();
      yield* sleep(10);
    })());
    yield* checkpoint();
    lock.release();
    guard[Symbol.dispose]();
    yield* sleep(5);
    guard[Symbol.dispose]();
    assert(lock.locked);
    yield* other.join();
    assertFalse(lock.locked);
    yield* lock.acquire();
    guard[Symbol.dispose](); // It has done its work long ago.
    assert(lock.held);
    lock.release();
    const early = yield* lock.acquire();
    lock.release();
    const late = yield* lock.acquire();
    early[Symbol.dispose](); // What it was for was given back by hand.
    assert(lock.held);
    late[Symbol.dispose]();
    assertFalse(lock.locked);
    const semaphore = new Semaphore(1);
    const slot = yield* semaphore.acquire();
    slot[Symbol.dispose]();
    slot[Symbol.dispose]();
    assertEquals(semaphore.value, 1);
    const again = yield* semaphore.acquire();
    semaphore.release();
    assertThrows(() => again[Symbol.dispose](), Error, "no slot of it is taken");
  });
});

Deno.test("S2 a lock stays taken though its task has ended; its guard may release it anywhere, nothing else may", async () => {
  const lock = new Lock();
  let guard!: Disposable;
  await simulate(function* () {
    guard = yield* lock.acquire();
  });
  assertEquals([lock.locked, lock.held], [true, false]);
  assertThrows(() => lock.release(), Error, "does not hold it");
  guard[Symbol.dispose]();
  assertFalse(lock.locked);
});

// ---- Semaphore -------------------------------------------------------------------------------------------------

Deno.test("S2 a semaphore counts exactly, and lets in no more than it has slots", async () => {
  await simulate(function* () {
    const semaphore = new Semaphore(3);
    let inside = 0;
    let most = 0;
    function* job(ms: number): Coroutine<void> {
      using _slot = yield* semaphore.acquire();
      most = Math.max(most, ++inside);
      assert(semaphore.value + inside <= 3); // Some have a slot and have not come in yet.
      yield* sleep(ms);
      inside--;
    }
    yield* all(Array.from({ length: 20 }, (_, i) => job(i * 7 % 5)));
    assertEquals([most, inside, semaphore.value], [3, 0, 3]);
    assertThrows(() => semaphore.release(), Error, "Cannot release the semaphore: no slot of it is taken");
  });
});

Deno.test("S2 a semaphore with a max can be filled by release, from 0 too", async () => {
  await simulate(function* ({ loop }) {
    const semaphore = new Semaphore(0, { max: 2 });
    const waiter = loop.createTask(semaphore.acquire());
    yield* checkpoint();
    semaphore.release(); // to the waiter
    yield* waiter.join();
    semaphore.release();
    semaphore.release();
    assertEquals(semaphore.value, 2);
    assertThrows(() => semaphore.release(), Error, "no slot of it is taken");
  });
  for (const bad of [-1, 1.5, NaN, "1" as unknown as number]) {
    assertThrows(() => new Semaphore(bad), RangeError, "the value must be a whole number from 0 up");
  }
  assertThrows(() => new Semaphore(3, { max: 2 }), RangeError, "semaphore of 3: that is more than its max, 2");
  for (const max of [1.5, NaN, "2" as never]) assertThrows(() => new Semaphore(1, { max }), RangeError, "whole number");
});

Deno.test("S2 a semaphore that starts at 0 is a signal: every release lets one in, now or later", async () => {
  await simulate(function* () {
    const signal = new Semaphore(0);
    signal.release();
    signal.release();
    yield* signal.acquire();
    assertEquals(signal.value, 1);
  });
});

/** Takes a slot, says so, and gives it back. */
function* usesSlot(semaphore: Semaphore, log: string[], name: string): Coroutine {
  using _slot = yield* semaphore.acquire();
  log.push(name);
}

Deno.test("S1 a guard whose yield* was forgotten is refused where it is written", () => {
  for (const exclusive of [new Lock(), new Semaphore(1), new Condition()]) {
    assertThrows(
      () => {
        using _guard = exclusive.acquire();
      },
      TypeError,
      "write `using guard = yield* lock.acquire()`",
    );
  }
});

Deno.test("S1 a semaphore hands its slot to who has waited longest", async () => {
  await simulate(function* ({ loop }) {
    const semaphore = new Semaphore(1);
    const log: string[] = [];
    const slot = yield* semaphore.acquire();
    for (const name of ["a", "b", "c"]) loop.createTask(usesSlot(semaphore, log, name));
    yield* checkpoint();
    slot[Symbol.dispose]();
    assertEquals(semaphore.value, 0);
    yield* usesSlot(semaphore, log, "barger");
    assertEquals(log, ["a", "b", "c", "barger"]);
  });
});

Deno.test("C6 S1 who is cancelled as it gets a slot hands it to who waits", async () => {
  await simulate(function* ({ loop }) {
    const semaphore = new Semaphore(1);
    const log: string[] = [];
    const first = loop.createTask(usesSlot(semaphore, log, "cancelled"));
    const second = loop.createTask(usesSlot(semaphore, log, "next"));
    first.cancel(); // It begins all the same, and holds the slot until it is thrown this at its first op.
    yield* failAfter(10, second.join());
    assertEquals([log, first.cancelled, semaphore.value], [["next"], true, 1]);
  });
});

Deno.test("K11 who waits behind a task of another loop is not in a deadlock", async () => {
  const semaphore = new Semaphore(1);
  function* use(): Coroutine {
    using _slot = yield* semaphore.acquire();
  }
  const [first, second] = [simulation(), simulation()];
  const { promise, resolve } = Promise.withResolvers<void>();
  const ahead = first.loop.run((function* () {
    const slot = yield* semaphore.acquire();
    const waiter = first.loop.createTask(use());
    yield* until(promise);
    slot[Symbol.dispose]();
    yield* waiter.join();
  })());
  await platformTurn();
  const behind = second.loop.run(use());
  for (let i = 0; i < 20; i++) await platformTurn();
  resolve();
  await ahead;
  await behind;
});

// ---- Condition -------------------------------------------------------------------------------------------------

Deno.test("S3 notify refuses what is not a number of tasks", async () => {
  await simulate(function* () {
    const condition = new Condition();
    using _guard = yield* condition.acquire();
    for (const bad of [-1, NaN, 1.5, "x", Symbol("s")] as number[]) {
      assertThrows(() => condition.notify(bad), RangeError, "tasks: the number must be a whole one from 0 up");
    }
    condition.notify(0);
  });
});

Deno.test("S3 wait releases the lock, and has it again when it returns", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    const log: string[] = [];
    const task = loop.createTask((function* () {
      using _guard = yield* condition.acquire();
      yield* condition.wait();
      log.push("woken");
      condition.notify(); // allowed only to who holds the lock
    })());
    yield* checkpoint();
    yield* checkpoint();
    assertFalse(condition.locked);
    {
      using _guard = yield* condition.acquire();
      condition.notify();
      yield* settle();
      assertEquals(log, []); // It waits for the lock.
    }
    yield* task.join();
    assertEquals([log, condition.locked], [["woken"], false]);
  });
});

Deno.test("S3 a guard stays good while wait releases the lock and takes it again", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    const waiter = loop.createTask((function* () {
      using _guard = yield* condition.acquire();
      yield* condition.wait();
      yield* moveOnAfter(5, condition.wait());
    })());
    yield* settle();
    {
      using _guard = yield* condition.acquire();
      condition.notify();
    }
    yield* waiter.join();
    assertFalse(condition.locked);
  });
});

Deno.test("S3 wait has the lock again also when it is cancelled, however long that takes", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const condition = new Condition(lock);
    const log: string[] = [];
    const task = loop.createTask((function* () {
      using _guard = yield* condition.acquire();
      try {
        yield* condition.wait();
      } catch (error) {
        assertInstanceOf(error, Cancelled);
        log.push(`held: ${lock.held}, at ${loop.time()}`);
        throw error;
      }
    })());
    yield* settle();
    const guard = yield* lock.acquire();
    task.cancel();
    yield* sleep(100);
    assertFalse(task.done);
    guard[Symbol.dispose]();
    yield* task.wait();
    assertEquals([log, lock.locked, task.cancelled], [["held: true, at 100"], false, true]);
  });
});

Deno.test("S3 use without the lock is an error", async () => {
  await simulate(function* () {
    const condition = new Condition();
    const why = "the condition: the current task does not hold its lock";
    assertThrows(() => condition.notify(), Error, `Cannot notify ${why}`);
    assertThrows(() => condition.notifyAll(), Error, `Cannot notify ${why}`);
    assertEquals((yield* thrownBy(condition.wait())).message, `Cannot wait for ${why}`);
    assertEquals((yield* thrownBy(condition.waitFor(() => true))).message, `Cannot wait for ${why}`);
    assertThrows(() => condition.release(), Error);
  });
});

Deno.test("S3 notify wakes as many as it is told, those that have waited longest", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    const log: number[] = [];
    for (let i = 0; i < 6; i++) {
      loop.createTask((function* () {
        using _guard = yield* condition.acquire();
        yield* condition.wait();
        log.push(i);
      })());
    }
    yield* settle();
    function* notify(act: () => void): Coroutine<number> {
      {
        using _guard = yield* condition.acquire();
        act();
      }
      yield* settle();
      return log.length;
    }
    assertEquals(yield* notify(() => condition.notify(0)), 0);
    assertEquals(yield* notify(() => condition.notify()), 1);
    assertEquals(yield* notify(() => condition.notify(2)), 3);
    assertEquals(yield* notify(() => condition.notifyAll()), 6);
    assertEquals(yield* notify(() => condition.notifyAll()), 6);
    assertEquals(log, [0, 1, 2, 3, 4, 5]);
  });
});

Deno.test("S3 waitFor looks again each time it is notified, and does not wait for what is true", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    let n = 0;
    let looked = 0;
    const task = loop.createTask((function* () {
      using _guard = yield* condition.acquire();
      yield* condition.waitFor(() => (looked++, n >= 3));
      return n;
    })());
    yield* settle();
    for (let i = 0; i < 5; i++) {
      using _guard = yield* condition.acquire();
      n++;
      condition.notifyAll();
    }
    // The waiter queues for the lock with everybody else: it comes when 3 or more have been counted.
    assert((yield* task.join()) >= 3);
    assert(looked >= 2);
    using _guard = yield* condition.acquire();
    yield* condition.waitFor(() => true);
    assertEquals(yield* moveOnAfter(5, condition.waitFor(() => undefined as never)), undefined);
    assertEquals(loop.time(), 5); // What is undefined, or null, does not hold.
  });
});

Deno.test("S3 waitFor asks once at each look, so that a predicate may take what it finds", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    const jobs = [1];
    function* next(): Coroutine<number> {
      using _guard = yield* condition.acquire();
      let job: number | undefined;
      yield* condition.waitFor(() => (job = jobs.shift()) !== undefined);
      return job!;
    }
    assertEquals(yield* next(), 1); // It is there at once.
    const task = loop.createTask(next());
    yield* settle();
    using _guard = yield* condition.acquire();
    jobs.push(2, 3);
    condition.notify();
    condition.release();
    assertEquals(yield* task.join(), 2);
    yield* condition.acquire();
    yield* moveOnAfter(0, condition.waitFor(() => jobs.shift() !== undefined)); // Cancelled, it takes nothing.
    assertEquals(jobs, [3]);
  });
});

for (
  const [what, lend] of [
    ["Lock", () => new Lock()],
    ["Condition", () => new Condition()],
  ] as const
) {
  Deno.test(`K11 ${what}: who waits for what a task of another loop holds is not in a deadlock`, async () => {
    const lock = lend();
    const { loop: a, world } = simulation();
    const { loop: b } = simulation();
    const { loop: c } = simulation();
    world.autojump = false;
    function* hold(): Coroutine<void> {
      using _guard = yield* lock.acquire();
      yield* sleep(1000);
    }
    function* wait(): Coroutine<string> {
      using _guard = yield* lock.acquire();
      return "held";
    }
    const held = a.run(hold());
    await platformTurn();
    const first = b.run(wait());
    const second = c.run(all([wait(), wait()])); // These wait for one of their own as well.
    for (let n = 0; n < 20; n++) await platformTurn(); // The grace, in simulated time, is over by now.
    world.advance(1000);
    await held;
    assertEquals(await first, "held");
    assertEquals(await second, ["held", "held"]);
  });
}

Deno.test("K11 what two loops have used in turn hides no deadlock; a coroutine of sync.ts can be stepped by hand", async () => {
  const semaphore = new Semaphore(1);
  const lock = new Lock();
  function* use(): Coroutine<void> {
    using _slot = yield* semaphore.acquire();
    using _guard = yield* lock.acquire();
  }
  await simulation().loop.run(use());
  const { loop } = simulation();
  await assertRejects(
    () =>
      loop.run((function* (): Coroutine<void> {
        yield* use();
        yield* new Event().wait();
      })()),
    DeadlockError,
  );
  assertEquals(new Semaphore(1).acquire().next(), { value: ["checkpoint"], done: false }); // K14
});

Deno.test("S3 waitFor what is true lets others run", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    using _guard = yield* condition.acquire();
    const other = loop.createTask(checkpoint());
    for (let n = 0; n < 3; n++) yield* condition.waitFor(() => true);
    assert(other.done);
  });
});

Deno.test("C6 a condition's waiter that is cancelled takes no notification with it", async () => {
  await simulate(function* ({ loop }) {
    const condition = new Condition();
    const log: string[] = [];
    function* waiter(name: string): Coroutine<void> {
      using _guard = yield* condition.acquire();
      yield* condition.wait();
      log.push(name);
    }
    const first = loop.createTask(waiter("first"));
    loop.createTask(waiter("second"));
    yield* settle();
    first.cancel();
    {
      using _guard = yield* condition.acquire();
      condition.notify();
    }
    yield* settle();
    assertEquals(log, ["second"]);
  });
});

Deno.test("S3 one lock, two conditions: a bounded buffer", async () => {
  await simulate(function* () {
    const lock = new Lock();
    const notFull = new Condition(lock);
    const notEmpty = new Condition(lock);
    const buffer: number[] = [];
    const taken: number[] = [];
    function* producer(from: number): Coroutine<void> {
      for (let i = 0; i < 10; i++) {
        using _guard = yield* lock.acquire();
        yield* notFull.waitFor(() => buffer.length < 2);
        buffer.push(from + i);
        notEmpty.notify();
      }
    }
    function* consumer(): Coroutine<void> {
      for (let i = 0; i < 10; i++) {
        using _guard = yield* lock.acquire();
        yield* notEmpty.waitFor(() => buffer.length > 0);
        taken.push(buffer.shift()!);
        notFull.notify();
      }
    }
    yield* all([producer(0), consumer(), producer(100), consumer()]);
    assertEquals(taken.toSorted((a, b) => a - b), [...Array(10).keys(), ...Array(10).keys().map((i) => 100 + i)]);
    assertEquals(taken.filter((n) => n < 100), [...Array(10).keys()]);
  });
});

// ---- Queue -----------------------------------------------------------------------------------------------------

Deno.test("S4 what was put comes out in order, whether items or getters wait", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>();
    for (let i = 0; i < 3; i++) yield* queue.put(i);
    assertEquals(queue.size, 3);
    const taken: number[] = [];
    const getters = Array.from({ length: 6 }, (_, i) =>
      loop.createTask((function* () {
        taken.push(yield* queue.get());
        return i;
      })()));
    yield* settle();
    for (let i = 3; i < 6; i++) queue.putNowait(i);
    yield* settle();
    assertEquals(taken, [0, 1, 2, 3, 4, 5]);
    assert(getters.every((task) => task.done));
    assertEquals(queue.size, 0);
  });
});

Deno.test("S4 a bounded put blocks until there is room, and putters keep their order", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(2);
    const put: number[] = [];
    for (let i = 0; i < 5; i++) {
      loop.createTask((function* () {
        yield* queue.put(i);
        put.push(i);
      })());
    }
    yield* settle();
    assertEquals([put, queue.size], [[0, 1], 2]);
    assertThrows(() => queue.putNowait(9), WouldBlock, "Cannot put: the queue is full, its maxsize is 2");
    const taken: number[] = [];
    for (let i = 0; i < 5; i++) taken.push(yield* queue.get());
    assertEquals([taken, put], [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]);
    assertThrows(() => queue.getNowait(), WouldBlock, "Cannot get: the queue is empty");
  });
});

Deno.test("S4 a bounded queue never holds more than it may, whoever is cancelled when", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(2);
    yield* queue.put(1);
    yield* queue.put(2);
    // A getter that is cancelled before its first op finds an item and must leave it, and its slot, alone.
    const getter = loop.createTask(queue.get());
    getter.cancel();
    yield* checkpoint();
    assertThrows(() => queue.putNowait(3), WouldBlock);
    const putter = loop.createTask(queue.put(3));
    yield* settle();
    assertEquals([queue.size, getter.cancelled, putter.done], [2, true, false]);
    assertEquals([yield* queue.get(), yield* queue.get(), yield* queue.get()], [1, 2, 3]);
  });
});

Deno.test("S4 getters that are cancelled together leave the items in order", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>();
    for (let i = 0; i < 4; i++) queue.putNowait(i);
    const getters = [1, 2, 3].map(() => loop.createTask(queue.get()));
    for (const getter of getters) getter.cancel();
    yield* settle();
    assert(getters.every((task) => task.cancelled));
    const taken: number[] = [];
    while (queue.size > 0) taken.push(yield* queue.get());
    assertEquals(taken, [0, 1, 2, 3]);
  });
});

Deno.test("S4 an item spoken for by a getter is not for getNowait, and goes to the next if it gives up", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<string>();
    queue.putNowait("a");
    const first = loop.createTask(queue.get());
    const second = loop.createTask(queue.get());
    first.cancel();
    yield* checkpoint();
    assertEquals(queue.size, 1);
    assertThrows(() => queue.getNowait(), WouldBlock, "goes to tasks that wait for it");
    assertEquals(yield* failAfter(10, second.join()), "a");
  });
});

Deno.test("S4 C7 close: the item of a getter that is cancelled goes to one that waits already", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<string>();
    queue.putNowait("job");
    const [first, second, third] = [queue.get(), queue.get(), queue.get()].map((coro) => loop.createTask(coro));
    first.cancel();
    loop.createTask((function* () {
      queue.close();
    })());
    assertEquals(yield* second.join(), "job");
    assertInstanceOf(yield* thrownBy(third.join()), ClosedError);
    assertEquals([queue.size, first.cancelled], [0, true]);
  });
});

Deno.test("S4 C7 close: the item of a getter that is cancelled goes to one that comes after the close", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<string>();
    queue.putNowait("job");
    queue.close();
    const [first, second] = [queue.get(), queue.get()].map((coro) => loop.createTask(coro));
    first.cancel();
    assertEquals(yield* second.join(), "job");
    assertInstanceOf(yield* thrownBy(queue.get()), ClosedError);
  });
});

Deno.test("S4 close: getters drain the rest, then all are told; who waits to put is told at once", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(2);
    yield* queue.put(1);
    yield* queue.put(2);
    const putter = loop.createTask(thrownBy(queue.put(3)));
    yield* settle();
    queue.close();
    queue.close();
    assert(queue.closed);
    assertInstanceOf(yield* putter.join(), ClosedError);
    assertThrows(() => queue.putNowait(4), ClosedError, "Cannot put into the queue: it is closed");
    assertInstanceOf(yield* thrownBy(queue.put(4)), ClosedError);
    assertEquals([yield* queue.get(), queue.getNowait()], [1, 2]);
    assertThrows(() => queue.getNowait(), ClosedError, "Cannot get from the queue: it is closed");
    assertInstanceOf(yield* thrownBy(queue.get()), ClosedError);
  });
});

Deno.test("S4 close wakes every getter that waits", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>();
    const getters = [1, 2, 3].map(() => loop.createTask(thrownBy(queue.get())));
    yield* settle();
    queue.close();
    for (const getter of getters) assertInstanceOf(yield* getter.join(), ClosedError);
  });
});

Deno.test("S4 close between a put that found room and its turn: the item is not in, and the put says so", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(1);
    const direct = loop.createTask(thrownBy(queue.put(1)));
    yield* checkpoint();
    queue.close();
    assertInstanceOf(yield* direct.join(), ClosedError);
    assertEquals(queue.size, 0);
  });
});

Deno.test("S4 join waits for every taskDone", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>();
    yield* queue.join(); // nothing was put
    for (let i = 0; i < 3; i++) queue.putNowait(i);
    const joiners = [1, 2].map(() => loop.createTask(queue.join()));
    for (let i = 0; i < 3; i++) {
      yield* queue.get();
      yield* settle();
      assertFalse(joiners[0].done);
      queue.taskDone();
    }
    for (const joiner of joiners) yield* joiner.join();
    assertThrows(() => queue.taskDone(), Error, "taskDone was called for every item already");
  });
});

Deno.test("S4 sizes that are none are refused, undefined is an item like any other", async () => {
  for (const bad of [-1, NaN, 1.5, "2" as unknown as number]) {
    assertThrows(() => new Queue(bad), RangeError, "items: the number must be a whole one from 0 up");
  }
  await simulate(function* () {
    const queue = new Queue<undefined>(1);
    yield* queue.put(undefined);
    assertEquals(queue.size, 1);
    assertStrictEquals(yield* queue.get(), undefined);
    assertEquals(queue.size, 0);
  });
});

Deno.test("S4 a LifoQueue gives what was put last", async () => {
  await simulate(function* () {
    assertEquals([new LifoQueue().maxsize, new Queue(Infinity).maxsize], [Infinity, Infinity]);
    const queue = new LifoQueue<number>(3);
    for (const n of [1, 2, 3]) yield* queue.put(n);
    assertThrows(() => queue.putNowait(4), WouldBlock);
    assertEquals([yield* queue.get(), yield* queue.get(), yield* queue.get()], [3, 2, 1]);
  });
});

Deno.test("S4 a PriorityQueue gives the smallest first, equals in the order they came", async () => {
  await simulate(function* ({ loop }) {
    const queue = new PriorityQueue<[number, string]>(0, (a, b) => a[0] - b[0]);
    let seed = 3;
    const random = () => (seed = seed * 48271 % 2147483647) % 10;
    const items = Array.from({ length: 200 }, (_, i): [number, string] => [random(), `item ${i}`]);
    for (const item of items) yield* queue.put(item);
    const taken: [number, string][] = [];
    for (let i = 0; i < 200; i++) {
      // Some getters give up: nothing may move for it.
      if (i % 3 === 0) {
        const task = loop.createTask(queue.get());
        task.cancel();
        yield* task.wait();
      }
      taken.push(yield* queue.get());
    }
    assertEquals(taken, items.toSorted((a, b) => a[0] - b[0])); // which is stable
  });
});

Deno.test("S4 a PriorityQueue whose comparison throws neither loses nor doubles an item", async () => {
  await simulate(function* () {
    for (let failing = 1; failing < 12; failing++) {
      let left = Infinity;
      const queue = new PriorityQueue<number>(0, (a, b) => {
        if (--left === 0) throw new Error("a wrong comparison");
        return a - b;
      });
      const items = [7, 3, 9, 1, 5, 8, 2];
      for (const item of items) queue.putNowait(item);
      left = failing;
      try {
        queue.putNowait(0);
        items.push(0);
      } catch { /* not in it */ }
      const got: number[] = [];
      while (queue.size > 0) {
        try {
          got.push(queue.getNowait());
          queue.taskDone();
        } catch (error) {
          assertEquals((error as Error).message, "a wrong comparison");
        }
      }
      assertEquals(got, items.toSorted());
      yield* queue.join();
    }
  });
});

Deno.test("S4 a PriorityQueue orders [priority, item] by the priority, as Python's tuples, whatever the item", () => {
  const queue = new PriorityQueue<[number, unknown]>();
  for (const entry of [[10, "c"], [9, { first: true }], [9, { first: false }], [10, "b"]] as [number, unknown][]) {
    queue.putNowait(entry);
  }
  assertEquals(Array.from({ length: 4 }, () => queue.getNowait()), [
    [9, { first: true }],
    [9, { first: false }],
    [10, "b"],
    [10, "c"],
  ]);
});

Deno.test("S4 in a PriorityQueue objects and symbols count as equal, whatever they turn into, and dates do not", () => {
  const items: unknown[] = [new URL("http://b/"), "http://a/", new URL("http://a/"), { __proto__: null }, () => 1];
  for (const wrap of [(item: unknown) => item, (item: unknown) => [1, item]]) {
    const queue = new PriorityQueue<unknown>();
    for (const item of items) queue.putNowait(wrap(item));
    assertEquals(Array.from({ length: 5 }, () => queue.getNowait()), items.map(wrap));
  }
  for (const [first, second] of [["b", ["a"]], [["b"], "a"], ["b", () => 1]]) {
    const pair = new PriorityQueue<unknown>();
    pair.putNowait(first);
    pair.putNowait(second);
    assertEquals(pair.getNowait(), first);
  }
  const symbols = new PriorityQueue<symbol | number>();
  for (const item of [Symbol.iterator, 2, Symbol.asyncIterator]) symbols.putNowait(item);
  assertEquals(Array.from({ length: 3 }, () => symbols.getNowait()), [Symbol.iterator, 2, Symbol.asyncIterator]);
  const queue = new PriorityQueue<unknown>();
  for (const year of [2003, 2001, 2002]) queue.putNowait([new Date(year, 0), year]);
  assertEquals(Array.from({ length: 3 }, () => (queue.getNowait() as unknown[])[1]), [2001, 2002, 2003]);
});

Deno.test("S4 a PriorityQueue takes a comparison that gives fractions, or never says that two are equal", () => {
  const items = [0.1, 0.3, 0.2, 0.9, 0.5, 0.8, 0.7];
  for (const compare of [(a: number, b: number) => a - b, (a: number, b: number) => a < b ? -1 : 1]) {
    const queue = new PriorityQueue<number>(0, compare);
    for (const item of items) queue.putNowait(item);
    assertEquals(items.map(() => queue.getNowait()), items.toSorted());
  }
});

Deno.test("S4 a comparison that throws in a put or a get passes the slot or the item on to who waits next", async () => {
  let throws = false;
  const compare = (a: number, b: number) => {
    const thrown = throws || a < 0 || b < 0;
    throws = false;
    if (thrown) throw new Error("cannot compare");
    return a - b;
  };
  await simulate(function* ({ loop }) {
    const full = new PriorityQueue<number>(2, compare);
    full.putNowait(1);
    full.putNowait(2);
    const bad = loop.createTask(full.put(-1));
    const good = loop.createTask(full.put(3));
    yield* settle();
    assertEquals(yield* full.get(), 1);
    assertEquals((yield* thrownBy(bad.join())).message, "cannot compare");
    yield* good.join();
    assertEquals([full.size, yield* full.get(), yield* full.get()], [2, 2, 3]);

    const queue = new PriorityQueue<number>(0, compare);
    const getters = [1, 2, 3, 4].map(() => loop.createTask(queue.get()));
    yield* settle();
    for (const item of [1, 2, 3]) queue.putNowait(item);
    throws = true;
    assertEquals((yield* thrownBy(getters[0].join())).message, "cannot compare");
    yield* settle();
    assertEquals([queue.size, getters.filter((task) => task.done).length], [0, 4]);
  });
});

Deno.test("S4 a PriorityQueue compares with < by default, and a waiting getter takes the smallest there is", async () => {
  await simulate(function* ({ loop }) {
    const queue = new PriorityQueue<string>();
    const getter = loop.createTask(queue.get());
    yield* checkpoint();
    for (const word of ["pear", "apple", "fig"]) queue.putNowait(word);
    assertEquals(yield* getter.join(), "apple");
    assertEquals([queue.getNowait(), queue.getNowait()], ["fig", "pear"]);
  });
  assertThrows(
    () => new PriorityQueue(0, 5 as never),
    TypeError,
    "Cannot make a queue with the compare 5: it must be a function",
  );
});

Deno.test("S4 a comparison that throws in a put does not make the queue larger", async () => {
  await simulate(function* () {
    const queue = new PriorityQueue<number>(2, (a, b) => {
      if (a < 0) throw new RangeError("below 0");
      return a - b;
    });
    yield* queue.put(1);
    assertInstanceOf(yield* thrownBy(queue.put(-1)), RangeError);
    yield* queue.put(2);
    assertThrows(() => queue.putNowait(3), WouldBlock);
  });
});

Deno.test("S4 C6 a slot that a cancelled put had been promised goes to the next putter", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(1);
    const first = loop.createTask(queue.put(1));
    const second = loop.createTask(queue.put(2));
    first.cancel(); // It hears of it at its first op, when it has a slot.
    yield* second.join();
    assertEquals([first.cancelled, queue.getNowait()], [true, 2]);
  });
});

Deno.test("S1 putNowait takes no slot that a waiting put was promised", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(1);
    const put = loop.createTask(queue.put(1));
    loop.createTask((function* (): Coroutine {
      assertThrows(() => queue.putNowait(2), WouldBlock, "all room in the queue goes to tasks that wait for it");
    })());
    yield* put.join();
    assertEquals(queue.size, 1);
  });
});

Deno.test("S4 items that drop one for another: nobody gets what is not there, and join waits for what is left", async () => {
  class Latest implements QueueItems<number> {
    #items: number[] = [];
    get length(): number {
      return this.#items.length;
    }
    append(item: number): void {
      this.#items = [item];
    }
    popleft(): number | undefined {
      return this.#items.shift();
    }
  }
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(0, new Latest());
    const [first, second] = [loop.createTask(queue.get()), loop.createTask(queue.get())];
    yield* checkpoint();
    queue.putNowait(1);
    queue.putNowait(2);
    assertEquals(yield* first.join(), 2);
    yield* checkpoint();
    assertFalse(second.done);
    queue.putNowait(3);
    assertEquals(yield* second.join(), 3);
    queue.taskDone();
    queue.taskDone();
    yield* queue.join();
    assertThrows(() => queue.taskDone(), Error, "called for every item already");
  });
});

Deno.test("S1 S4 putNowait takes no slot that was promised when an item was taken, and the queue never holds too many", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(1);
    queue.putNowait(1);
    const put = loop.createTask(queue.put(2));
    yield* checkpoint();
    assertEquals(queue.getNowait(), 1);
    assertThrows(() => queue.putNowait(3), WouldBlock);
    yield* put.join();
    assertThrows(() => queue.putNowait(3), WouldBlock);
    assertEquals([queue.getNowait(), queue.size], [2, 0]);
  });
});

Deno.test("S4 a queue keeps nothing of the items that were taken", needs({ run: true }), async () => {
  const program = `
    const queue = new Queue();
    const before = used();
    for (let i = 0; i < 10; i++) queue.putNowait(new Array(100_000).fill(0.5));
    while (queue.size > 0) queue.getNowait();
    const more = used() - before;
    console.log(more < 1e6 ? "little" : more, queue.size);`;
  assertEquals(await runWithGc("Queue", program), "little 0\n");
});

Deno.test("S4 a queue that was long keeps its order and frees its memory", needs({ run: true }), async () => {
  const program = `
    const queue = new Queue();
    const before = used();
    let put = 0;
    let inOrder = 0;
    for (const times of [3000, 1_000_000]) { // After the first, the ring begins somewhere in its middle.
      while (queue.size < times) queue.putNowait(put++);
      while (queue.size > 0) if (queue.getNowait() === inOrder) inOrder++;
    }
    const kept = used() - before;
    console.log(inOrder, queue.size, kept < 2e6 ? "little" : kept);`;
  assertEquals(await runWithGc("Queue", program), "1003000 0 little\n");
});

Deno.test("S4 a PriorityQueue gives an earlier date, and the shorter of two arrays that begin alike, first", () => {
  const dates = new PriorityQueue<Date>();
  for (const ms of [2, 1]) dates.putNowait(new Date(ms));
  assertEquals(dates.getNowait(), new Date(1));
  const arrays = new PriorityQueue<number[]>();
  for (const array of [[1, 0], [1]]) arrays.putNowait(array);
  assertEquals(arrays.getNowait(), [1]);
});

// ---- C6: leaving the queue of waiters --------------------------------------------------------------------------

/** Something that three tasks wait for, of which each `wake` serves one. */
interface Contended {
  wait(): Coroutine<unknown>;
  wake(): void;
}

const CONTENDED: Record<string, () => Contended> = {
  "Semaphore.acquire"() {
    const semaphore = new Semaphore(0, { max: 9 });
    return { wait: () => semaphore.acquire(), wake: () => semaphore.release() };
  },
  "Queue.get"() {
    const queue = new Queue<number>();
    return { wait: () => queue.get(), wake: () => queue.putNowait(1) };
  },
  "Queue.put"() {
    const queue = new Queue<number>(1);
    queue.putNowait(0);
    return { wait: () => queue.put(1), wake: () => void queue.getNowait() };
  },
};

/** Starts three waiters; `log` is where they say that they were served. */
function waiters(loop: Loop, contended: Contended, log: number[]): Task[] {
  return [0, 1, 2].map((i) =>
    loop.createTask((function* () {
      yield* contended.wait();
      log.push(i);
    })())
  );
}

for (const [name, make] of Object.entries(CONTENDED)) {
  for (const gone of [[0], [1], [2], [0, 1], [0, 2], [1, 2]]) {
    Deno.test(`C6 ${name}: waiters ${gone} leave at once, and the next wake goes to the next`, async () => {
      await simulate(function* ({ loop }) {
        const log: number[] = [];
        const contended = make();
        const tasks = waiters(loop, contended, log);
        yield* checkpoint();
        for (const i of gone) tasks[i].cancel();
        // In the very step of the cancel: they have left already.
        contended.wake();
        yield* settle();
        const rest = [0, 1, 2].filter((i) => !gone.includes(i));
        assertEquals(log, rest.slice(0, 1));
        for (const _ of rest.slice(1)) {
          contended.wake();
          yield* settle();
        }
        assertEquals(log, rest);
      });
    });
  }

  Deno.test(`C6 ${name}: a waiter that times out leaves its place, one that was served in that turn is served`, async () => {
    await simulate(function* ({ loop, world }) {
      const log: string[] = [];
      const contended = make();
      function* waiter(who: string, ms: number): Coroutine<void> {
        yield* moveOnAfter(
          ms,
          (function* () {
            yield* contended.wait();
            log.push(`${who} at ${loop.time()}`);
          })(),
        );
      }
      yield* taskGroup(function* (group) {
        group.createTask(waiter("a", 10));
        group.createTask(waiter("b", 30));
        group.createTask(waiter("c", 1000));
        yield* sleep(20);
        contended.wake(); // a is gone: it is b's
        world.hold(15); // and though b's time is up before it runs, it was served
        yield* sleep(5);
        contended.wake();
      });
      assertEquals(log, ["b at 35", "c at 40"]);
    });
  });
}

Deno.test("C6 Lock.acquire: a waiter that is cancelled leaves at once", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const log: number[] = [];
    const guard = yield* lock.acquire();
    const tasks = [0, 1, 2].map((i) =>
      loop.createTask((function* () {
        using _guard = yield* lock.acquire();
        log.push(i);
      })())
    );
    yield* checkpoint();
    tasks[0].cancel();
    guard[Symbol.dispose]();
    tasks[1].cancel(); // It was handed the lock, and learns of this at its next op.
    yield* settle();
    assertEquals([log, lock.locked], [[1, 2], false]);
    assertEquals(tasks.map((task) => task.cancelled), [true, false, false]);
  });
});

Deno.test("C6 cancelled before the first op, nothing is taken that was free", async () => {
  await simulate(function* ({ loop }) {
    const lock = new Lock();
    const semaphore = new Semaphore(1);
    const queue = new Queue<number>(2);
    queue.putNowait(1);
    const event = new Event();
    event.set();
    for (const coro of [lock.acquire(), semaphore.acquire(), queue.get(), queue.put(2), event.wait()]) {
      const task = loop.createTask<unknown>(coro);
      task.cancel();
      // While it is on its way, others queue behind it, and are served when it is gone.
      const others = loop.createTask((function* () {
        using _guard = yield* lock.acquire();
        using _slot = yield* semaphore.acquire();
        yield* queue.put(yield* queue.get());
      })());
      yield* failAfter(10, others.join());
      assert(task.cancelled);
    }
    assertEquals([lock.locked, semaphore.value, queue.size, queue.getNowait()], [false, 1, 1, 1]);
    queue.putNowait(1);
    queue.putNowait(2);
  });
});

Deno.test("C6 Event.wait and Queue.join: who is cancelled is not woken, the others are", async () => {
  await simulate(function* ({ loop }) {
    const event = new Event();
    const queue = new Queue<number>();
    queue.putNowait(1);
    const log: string[] = [];
    function* waiter(name: string, wait: () => Coroutine): Coroutine<void> {
      yield* wait();
      log.push(name);
    }
    const gone = [
      loop.createTask(waiter("event gone", () => event.wait())),
      loop.createTask(waiter("queue gone", () => queue.join())),
    ];
    loop.createTask(waiter("event", () => event.wait()));
    loop.createTask(waiter("queue", () => queue.join()));
    yield* checkpoint();
    for (const task of gone) task.cancel();
    event.set();
    queue.getNowait();
    queue.taskDone();
    yield* settle();
    assertEquals(log, ["event", "queue"]);
  });
});

Deno.test("S1 a thousand random cancels lose no item, no slot, no lock", async () => {
  await simulate(function* ({ loop }) {
    let seed = 11;
    const random = (n: number) => (seed = seed * 48271 % 2147483647) % n;
    const queue = new Queue<number>(3);
    const lock = new Lock();
    const semaphore = new Semaphore(2);
    const put: number[] = [];
    const taken: number[] = [];
    let next = 0;
    let inside = 0;
    function* work(): Coroutine<void> {
      if (random(2)) {
        const item = next++;
        yield* queue.put(item);
        put.push(item);
      } else {
        taken.push(yield* queue.get());
      }
      using _slot = yield* semaphore.acquire();
      assert(++inside <= 2);
      try {
        using _guard = yield* lock.acquire();
        yield* checkpoint();
      } finally {
        inside--;
      }
    }
    const live = new Set<Task>();
    for (let i = 0; i < 1000; i++) {
      const task = loop.createTask(work());
      live.add(task);
      task.addDoneCallback(() => live.delete(task));
      for (let n = random(5); n > 0; n--) yield* checkpoint();
      const victims = [...live];
      if (random(4) === 0) victims[random(victims.length)]?.cancel();
    }
    for (const task of live) task.cancel();
    yield* sleep(1);
    assertEquals([live.size, inside, semaphore.value, lock.locked], [0, 0, 2, false]);
    while (queue.size > 0) taken.push(queue.getNowait());
    assertEquals(taken, put);
    assert(put.length > 50, `too few put: ${put.length}`);
  });
});

Deno.test("S1 tasks that wait for each other for ever are named with what they wait for", async () => {
  const left = new Lock();
  const right = new Lock();
  function* take(first: Lock, second: Lock): Coroutine<void> {
    using _first = yield* first.acquire();
    yield* sleep(1);
    using _second = yield* second.acquire();
  }
  const error = await assertRejects(
    () => simulate(() => all([take(left, right), take(right, left)])),
    DeadlockError,
  );
  assertEquals(
    error.message,
    'Deadlock: nothing can wake task 1 "main" (waits for park the tasks of its group), ' +
      "task 2 (waits for park Lock.acquire), task 3 (waits for park Lock.acquire)",
  );
});

Deno.test("K11 who waits for what will never come is named with the very wait", async () => {
  const [empty, full] = [new Queue<number>(), new Queue<number>(1)];
  full.putNowait(1);
  const condition = new Condition();
  function* wait(): Coroutine<void> {
    using _guard = yield* condition.acquire();
    yield* condition.wait();
  }
  const starting = taskGroup((group) => group.start(() => new Event().wait()));
  const waits = [new Semaphore(0).acquire(), wait(), empty.get(), full.put(2), full.join(), starting];
  const { ops } = await assertRejects(() => simulate(() => all<Coroutine<unknown>[]>(waits)), DeadlockError);
  assertEquals(ops.slice(1).map((op) => String(op?.[1])), [
    ...["Semaphore.acquire", "Condition.wait", "Queue.get", "Queue.put", "Queue.join"],
    ...["a task to say that it has started", "Event.wait"],
  ]);
});

Deno.test("S4 a get and a put that time out leave no trace", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>(1);
    assertEquals(yield* moveOnAfter(10, queue.get()), undefined);
    yield* queue.put(1);
    yield* moveOnAfter(10, queue.put(2));
    assertEquals([queue.size, loop.time()], [1, 20]);
    assertEquals(yield* queue.get(), 1);
    assertThrows(() => queue.getNowait(), WouldBlock);
    queue.putNowait(3);
    assertEquals(queue.getNowait(), 3);
  });
});

Deno.test("S4 getters are served in turn: no consumer starves another", async () => {
  await simulate(function* ({ loop }) {
    const queue = new Queue<number>();
    const served = [0, 0, 0, 0];
    const consumers = served.map((_, i) =>
      loop.createTask((function* () {
        for (;;) {
          yield* queue.get();
          served[i]++;
        }
      })())
    );
    for (let i = 0; i < 40; i++) {
      yield* queue.put(i);
      yield* checkpoint();
    }
    yield* settle();
    for (const consumer of consumers) consumer.cancel();
    assertEquals(served, [10, 10, 10, 10]);
  });
});

Deno.test("S1 lock, semaphore of one, condition and queue of one exclude each other's tasks alike", async () => {
  const lock = new Lock();
  const semaphore = new Semaphore(1);
  const condition = new Condition();
  const token = new Queue<string>(1);
  token.putNowait("token");
  const exclusions: (() => Coroutine<() => void>)[] = [
    function* () {
      yield* lock.acquire();
      return () => lock.release();
    },
    function* () {
      yield* semaphore.acquire();
      return () => semaphore.release();
    },
    function* () {
      yield* condition.acquire();
      return () => condition.release();
    },
    function* () {
      yield* token.get();
      return () => token.putNowait("token");
    },
  ];
  for (const enter of exclusions) {
    await simulate(function* () {
      let inside = 0;
      const order: number[] = [];
      function* loopy(i: number): Coroutine<void> {
        for (let round = 0; round < 5; round++) {
          const leave = yield* enter();
          assertEquals(++inside, 1);
          order.push(i);
          yield* checkpoint();
          inside--;
          leave();
        }
      }
      yield* all([loopy(0), loopy(1), loopy(2)]);
      assertEquals(order, Array.from({ length: 15 }, (_, i) => i % 3));
    });
  }
});

Deno.test("S3 a condition refuses a lock that is none, and a predicate that would have to wait itself", async () => {
  assertThrows(() => new Condition(5 as never), TypeError, "on 5: it is not a Lock");
  assertThrows(() => new Condition({} as never), TypeError, "it is not a Lock");
  await simulate(function* () {
    const condition = new Condition();
    using _guard = yield* condition.acquire();
    for (const wrong of [async () => await false, function* () {}, () => Promise.reject(new Error("unheard"))]) {
      const error = yield* thrownBy(condition.waitFor(wrong as never));
      assertInstanceOf(error, TypeError);
      assertEquals(
        error.message,
        "Cannot wait for a predicate that has to wait itself: it must return a boolean at once",
      );
    }
    const error = yield* thrownBy(condition.waitFor(true as never));
    assertInstanceOf(error, TypeError);
    assertEquals(error.message, "Cannot wait for true: it is not a function");
  });
});
