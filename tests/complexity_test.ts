/**
 * How cost grows, counted in operations and never in time: what a turn, a message, a timer, a wake and a cancellation take
 * when there are ten times as many tasks, timers and connections.
 */
import { assert, assertEquals } from "@std/assert";
import {
  type Addr,
  call,
  type CancelScope,
  cancelScope,
  checkpoint,
  type Connection,
  type Coroutine,
  DefaultSelector,
  Event,
  EVENT_READ,
  failAfter,
  Lock,
  Loop,
  Pollable,
  Queue,
  sleep,
  Socket,
  socketPair,
  Stream,
  type Task,
  taskGroup,
  until,
} from "../mod.ts";
import { PieceSocket } from "./pieces.ts";
import { random, type Simulation, simulation } from "./world.ts";

const TENFOLD = [10, 100, 1000];

/** Runs `main` in a simulated world and gives back what it can be counted by. */
async function count(main: (sim: Simulation) => Coroutine): Promise<Simulation> {
  const sim = simulation();
  await sim.loop.run(main(sim));
  assertEquals(sim.errors, []);
  return sim;
}

/** Runs `n` tasks to their end. */
function together(n: number, coro: (i: number) => Coroutine): Coroutine {
  return taskGroup(function* (group) {
    for (let i = 0; i < n; i++) group.createTask(coro(i));
  });
}

// ---- Turns -------------------------------------------------------------------------------------------------------

function* switches(times: number): Coroutine {
  for (let i = 0; i < times; i++) yield* checkpoint();
}

Deno.test("K2 a turn polls the selector once, however many tasks are ready", async () => {
  const turns = 100;
  for (const n of TENFOLD) {
    const { world } = await count((sim) =>
      (function* () {
        for (let i = 0; i < n; i++) sim.loop.createTask(switches(turns));
        yield* switches(turns);
      })()
    );
    assert(world.counts.poll >= turns && world.counts.poll <= turns + 5, `${n} tasks: ${world.counts.poll} polls`);
  }
});

Deno.test("K3 the platform turns once in some hundred steps, and more often only when time passes", async () => {
  for (const steps of [1000, 10_000, 100_000]) {
    const { world } = await count(function* ({ world }): Coroutine {
      world.hold(1000); // which lets it turn once
      yield* switches(steps);
    });
    const { select } = world.counts;
    assert(select >= steps / 1024 && select <= steps / 256 + 10, `${steps} steps: ${select} turns of the platform`);
  }
});

Deno.test("K3 when each step takes a millisecond, the platform turns once in eight at least", async () => {
  const { world } = await count(function* ({ world }): Coroutine {
    for (let i = 0; i < 800; i++) {
      world.hold(1);
      yield* checkpoint();
    }
  });
  assert(world.counts.select >= 100, `800 steps: ${world.counts.select} turns of the platform`);
});

Deno.test("K3 a run that begins long after the last does not begin with a turn of the platform", async () => {
  const { loop, world } = simulation();
  for (let run = 0; run < 10; run++) {
    world.hold(1000);
    await loop.run(switches(3));
  }
  assertEquals(world.counts.select, 0);
});

Deno.test("T1 a step looks at the clock only where a deadline is around it, a turn only where there is a timer", async () => {
  for (const [tasks, times, sleepers] of [[1, 10_000, 0], [100, 100, 1]]) {
    let looks = 0;
    const { loop } = simulation({ trace: undefined, clock: { now: () => (looks++, 0) } });
    for (let i = 0; i < sleepers; i++) loop.createTask(sleep(1000));
    await loop.run(together(tasks, () => switches(times)));
    assert(looks <= 1000, `${tasks * times} steps with ${sleepers} sleeping: ${looks} looks`);
  }
});

Deno.test("K15 a step takes one op, and an op is told of once, however many tasks there are", async () => {
  for (const n of TENFOLD) {
    const { trace } = await count(() => together(n, () => switches(10)));
    assertEquals(trace.filter((event) => event.op === "checkpoint" && event.task.name !== "main").length, 10 * n);
  }
});

// ---- Nesting -----------------------------------------------------------------------------------------------------

/** A coroutine that counts how often it is resumed. */
function counted<T>(coro: Coroutine<T>, counts: { resumes: number }): Coroutine<T> {
  return {
    [Symbol.toStringTag]: "Generator",
    [Symbol.iterator]() {
      return this;
    },
    next(value: unknown) {
      counts.resumes++;
      return coro.next(value);
    },
    throw: (error: unknown) => coro.throw(error),
    return: (value: T) => coro.return(value),
  } as unknown as Coroutine<T>;
}

function* deep(depth: number, counts: { resumes: number }): Coroutine {
  if (depth > 0) yield* call(counted(deep(depth - 1, counts), counts));
  else yield* switches(100);
}

Deno.test("K13 a switch inside call() resumes one coroutine, however deep it is nested", async () => {
  for (const depth of TENFOLD) {
    const counts = { resumes: 0 };
    await count(() => deep(depth, counts));
    // The innermost is resumed at each switch; all others at their beginning, and when what they called has ended.
    assert(counts.resumes >= 100 + depth && counts.resumes <= 102 + 2 * depth, `depth ${depth}: ${counts.resumes}`);
  }
});

Deno.test("K13 calls of calls that were all made before are looked at once each", async () => {
  for (const depth of TENFOLD) {
    let looks = 0;
    const promise = {
      then: (resolve: () => void) => resolve(),
      get [Symbol.toStringTag]() {
        looks++;
        return "Something";
      },
    };
    let coro = until(promise as unknown as PromiseLike<void>);
    for (let i = 0; i < depth; i++) coro = call(coro);
    await count(() => coro);
    assert(looks <= 5, `depth ${depth}: ${looks} looks`);
  }
});

// ---- Timers ------------------------------------------------------------------------------------------------------

/** How often a timer was moved to another place in the heap. */
interface Moves {
  moves: number;
}

/** Makes the timers of a loop count their moves: this looks inside, at the places the timers know they have. */
function countMoves({ loop }: Simulation): Moves {
  const counts = { moves: 0 };
  const timers = loop._timers;
  const add = timers.add.bind(timers);
  timers.add = (time, target) => {
    const timer = add(time, target);
    let { index } = timer;
    Object.defineProperty(timer, "index", {
      get: () => index,
      set(place: number) {
        if (place !== index) counts.moves++;
        index = place;
      },
    });
    return timer;
  };
  return counts;
}

Deno.test("K4 a sleep among n others moves at most a few times log n timers", async () => {
  for (const n of [100, 1000, 10_000]) {
    let counts!: Moves;
    const { loop } = await count((sim) => {
      counts = countMoves(sim);
      const next = random(1);
      return together(n, () => sleep(next(1000)));
    });
    const perSleep = counts.moves / n;
    assert(perSleep > 1, "no move was counted: the test no longer sees the heap");
    assert(perSleep <= 2 * Math.log2(n) + 2, `${n} sleepers: ${perSleep} moves each`);
    assertEquals(loop._timers.length, 0);
  }
});

Deno.test("T1 a deadline that is not reached costs at most a few times log n moves, and leaves no timer", async () => {
  const times = 1000;
  for (const n of [100, 1000, 10_000]) {
    await count((sim) =>
      (function* () {
        const next = random(1);
        const sleepers = Array.from({ length: n }, () => sim.loop.createTask(sleep(10_000 + next(1000))));
        yield* checkpoint();
        const counts = countMoves(sim);
        for (let i = 0; i < times; i++) yield* failAfter(1 + next(1000), checkpoint());
        const perDeadline = counts.moves / times;
        assert(perDeadline <= 2 * Math.log2(n) + 2, `${n} sleepers: ${perDeadline} moves for each deadline`);
        assertEquals(sim.loop._timers.length, n);
        for (const task of sleepers) task.cancel();
        for (const task of sleepers) yield* task.wait();
        assertEquals(sim.loop._timers.length, 0);
      })()
    );
  }
});

Deno.test("K4 timers that are due at once fire in one turn", async () => {
  for (const n of TENFOLD) {
    const { world } = await count(() => together(n, () => sleep(50)));
    assert(world.counts.select <= 5 + n / 256, `${n} sleepers: ${world.counts.select} selects`);
  }
});

Deno.test("K4 a loop that is woken again and again before its time sets the platform's timer once", async () => {
  const { setTimeout } = globalThis;
  let timers = 0;
  let waits = 0;
  const selector = new DefaultSelector();
  const { select } = selector;
  selector.select = (...args) => (waits++, select.apply(selector, args));
  const loop = new Loop({ selector });
  function* main(): Coroutine {
    const sleeper = loop.createTask(sleep(60_000));
    const [left, right] = socketPair();
    for (let i = 0; i < 100; i++) {
      yield* loop.sockSendall(left, new Uint8Array(1));
      yield* loop.sockRecv(right, 1);
    }
    left.close();
    right.close();
    sleeper.cancel();
  }
  performance.now = () => 1; // On one that moves, the time left may come out a trifle shorter, and the timer is set anew.
  globalThis.setTimeout = ((...args: Parameters<typeof setTimeout>) => (timers++, setTimeout(...args))) as any;
  try {
    await loop.run(main());
  } finally {
    Object.assign(globalThis, { setTimeout });
    Reflect.deleteProperty(performance, "now");
  }
  assert(waits >= 100, `it slept ${waits} times only`);
  assertEquals(timers, 1);
});

// ---- Waking each other -------------------------------------------------------------------------------------------

Deno.test("S4 an item through a queue takes one put and one get, however many there are", async () => {
  for (const n of TENFOLD) {
    const queue = new Queue<number>(5);
    const { trace } = await count((sim) =>
      (function* () {
        const getter = sim.loop.createTask(function* () {
          for (let i = 0; i < n; i++) yield* queue.get();
        }());
        for (let i = 0; i < n; i++) yield* queue.put(i);
        yield* getter.join();
      })()
    );
    assert(trace.length >= 2 * n && trace.length <= 2 * n + 5, `${n} items: ${trace.length} ops`);
  }
});

Deno.test("S1 to wait for a lock takes one op, however many wait", async () => {
  for (const n of TENFOLD) {
    const lock = new Lock();
    const { trace } = await count(() =>
      together(n, function* () {
        using _ = yield* lock.acquire();
        yield* checkpoint();
      })
    );
    assertEquals(trace.filter((event) => event.task.name !== "main").length, 2 * n);
  }
});

Deno.test("S1 an event wakes all who wait in one turn", async () => {
  for (const n of [100, 1000, 10_000]) {
    const event = new Event();
    const { world } = await count((sim) =>
      (function* () {
        let woken = 0;
        for (let i = 0; i < n; i++) {
          sim.loop.createTask(function* () {
            yield* event.wait();
            woken++;
          }());
        }
        yield* checkpoint();
        const before = sim.world.counts.poll;
        event.set();
        yield* checkpoint();
        assertEquals(woken, n);
        assert(sim.world.counts.poll - before <= 2, `${n} tasks: ${sim.world.counts.poll - before} turns`);
      })()
    );
    assert(world.counts.poll <= 10);
  }
});

// ---- Cancellation ------------------------------------------------------------------------------------------------

/** Teaches the loop of `sim` an op that waits for ever and counts how often that was taken back. */
function addForever({ loop }: Simulation): { cancels: number } {
  const counts = { cancels: 0 };
  loop.addOp("wait_for_ever", { start: () => {}, cancel: () => void counts.cancels++ });
  return counts;
}

function* forever(): Coroutine {
  yield ["wait_for_ever"];
}

Deno.test("C3 to cancel one task of n takes back one wait, in as many turns", async () => {
  for (const n of TENFOLD) {
    await count((sim) =>
      (function* () {
        const counts = addForever(sim);
        const tasks: Task[] = Array.from({ length: n }, () => sim.loop.createTask(forever()));
        yield* checkpoint();
        const before = sim.world.counts.poll;
        tasks[n >> 1].cancel();
        yield* tasks[n >> 1].wait();
        assertEquals(counts.cancels, 1);
        assert(sim.world.counts.poll - before <= 3, `${n} tasks: ${sim.world.counts.poll - before} turns`);
      })()
    );
  }
});

/** Blocks in blocks, `n` deep, the deadlines of which pass while the innermost takes a step. */
function* passing(sim: Simulation, n: number, innermost: (scope: CancelScope) => void): Coroutine {
  yield* cancelScope((scope) => {
    if (n > 1) return passing(sim, n - 1, innermost);
    innermost(scope);
    sim.world.hold(1);
    return checkpoint();
  }, { deadline: 1 });
}

Deno.test("C3 deadlines that pass at once settle what cancels the innermost block at once, however many they are", async () => {
  for (const n of [10, 100]) {
    let settled = 0;
    await count((sim) =>
      passing(sim, n, (scope) => {
        let by = scope._cancelledBy;
        Object.defineProperty(scope, "_cancelledBy", { get: () => by, set: (value) => void (settled++, by = value) });
      })
    );
    assert(settled > 0 && settled <= 2, `${n} deadlines: settled ${settled} times`);
  }
});

Deno.test("G2 to cancel a group of n takes back n waits, in as many turns", async () => {
  for (const n of TENFOLD) {
    await count((sim) =>
      (function* () {
        const counts = addForever(sim);
        let before = 0;
        yield* taskGroup(function* (group) {
          for (let i = 0; i < n; i++) group.createTask(forever());
          yield* checkpoint();
          before = sim.world.counts.poll;
          group.cancel();
        });
        assertEquals(counts.cancels, n);
        assert(sim.world.counts.poll - before <= 4, `${n} tasks: ${sim.world.counts.poll - before} turns`);
      })()
    );
  }
});

// ---- The network -------------------------------------------------------------------------------------------------

const ADDR: Addr = { transport: "tcp", hostname: "127.0.0.1", port: 1 };
const MESSAGE_SIZE = 64;

/** A promise that counts how often it is waited for: each wait makes one more promise. */
class Heard<T> extends Promise<T> {
  static waits = 0;
  static override get [Symbol.species](): PromiseConstructor {
    return Promise;
  }
  override then<A = T, B = never>(
    onfulfilled?: ((value: T) => A | PromiseLike<A>) | null,
    onrejected?: ((reason: any) => B | PromiseLike<B>) | null,
  ): Promise<A | B> {
    Heard.waits++;
    return super.then(onfulfilled, onrejected);
  }
}

/** A peer that sends some messages, each as soon as it is read for, takes what it is sent, and ends. */
class Chatter implements Connection {
  readonly localAddr = ADDR;
  readonly remoteAddr = ADDR;
  reads = 0;
  writes = 0;

  constructor(readonly messages: number) {}

  read(buffer: Uint8Array): Promise<number | null> {
    if (this.reads++ === this.messages) return Heard.resolve(null);
    buffer.fill(65, 0, MESSAGE_SIZE);
    return Heard.resolve(MESSAGE_SIZE);
  }
  write(data: Uint8Array): Promise<number> {
    this.writes++;
    return Heard.resolve(data.length);
  }
  closeWrite(): Promise<void> {
    return Promise.resolve();
  }
  close(): void {}
}

Deno.test("N7 a message takes one read, one write, a wait for each and two registrations, however many connections there are", async () => {
  const messages = 20;
  for (const n of TENFOLD) {
    const peers = Array.from({ length: n }, () => new Chatter(messages));
    Heard.waits = 0;
    const { world } = await count((sim) =>
      together(n, function* (i) {
        using sock = new Socket(peers[i]);
        while (true) {
          const data = yield* sim.loop.sockRecv(sock, 65536);
          if (data.length === 0) break;
          yield* sim.loop.sockSendall(sock, data);
        }
      })
    );
    for (const peer of peers) {
      assertEquals(peer.reads, messages + 1);
      assertEquals(peer.writes, messages);
    }
    assertEquals(world.counts.register, n * (2 * messages + 1));
    assertEquals(Heard.waits, n * (2 * messages + 1));
    // What comes at the same time is served in the same turn.
    assert(world.counts.poll <= 12 * messages, `${n} connections: ${world.counts.poll} polls`);
  }
});

/** What each call of a method that is built in was given while `main` ran. */
async function calls(prototype: any, method: string, main: () => Coroutine<any>): Promise<any[][]> {
  const given: any[][] = [];
  const original = prototype[method];
  prototype[method] = function (...args: any[]) {
    given[given.length] = args;
    return original.apply(this, args);
  };
  try {
    await count(main);
  } finally {
    prototype[method] = original;
  }
  return given;
}

Deno.test("ST3 a byte is copied three times at most, however many pieces come before all is there", async () => {
  for (const n of TENFOLD) {
    const stream = new Stream(new PieceSocket(...Array(n).fill("x".repeat(100))).end());
    const copies = await calls(Object.getPrototypeOf(Uint8Array.prototype), "set", () => stream.readAll());
    const copied = copies.reduce((sum, [data]) => sum + data.length, 0);
    assert(copied <= 3 * 100 * n, `${n} pieces: ${copied} bytes copied`);
  }
});

Deno.test("ST3 where a delimiter repeats itself is looked up once, however often it begins in vain", async () => {
  for (const n of TENFOLD) {
    const stream = new Stream(new PieceSocket("a".repeat(20 + n) + "b"));
    const found = await calls(Array.prototype, "push", () => stream.readUntil("a".repeat(20) + "b"));
    assert(found.length < 40, `begun ${n} times: ${found.length} steps`);
  }
});

/** Something to be watched that counts how often it is looked at. */
class Watched extends Pollable {
  looks = 0;
  isReady = false;
  _ready(): boolean {
    this.looks++;
    return this.isReady;
  }
  _arm(): void {}
  readonly _underWay = null;
  close(): void {}
  override toString(): string {
    return "something watched";
  }
}

Deno.test("N7 the selector looks only at what has news, however many idle sockets it watches", () => {
  for (const n of TENFOLD) {
    const selector = new DefaultSelector();
    const idle = Array.from({ length: n }, () => new Watched());
    const busy = new Watched();
    for (const sock of [...idle, busy]) selector.register(sock, EVENT_READ);
    assertEquals(selector.poll(), []);
    for (let i = 0; i < 100; i++) {
      busy.isReady = true;
      busy._signal(EVENT_READ);
      assertEquals(selector.poll().map(([key]) => key.fileobj), [busy]);
      busy.isReady = false;
      assertEquals(selector.poll(), []);
    }
    assert(idle.every((sock) => sock.looks === 1));
    assert(busy.looks <= 301, `${busy.looks} looks`);
    selector.close();
  }
});
