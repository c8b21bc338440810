/**
 * world.ts: a simulated world for tests.
 *
 * Time is a number that a {@linkcode World} owns. A loop that has nothing to do asks its selector to wait; the world lets
 * promises settle for a few turns of the platform, and if nothing came of it, jumps to the end of the wait. So a test
 * of an hour takes no time, and what it does depends on nothing but itself.
 *
 * Real sockets work in it too: they are watched by a `DefaultSelector`, and as long as one is watched the world gives
 * the network a few real milliseconds before it jumps.
 */
import { type Clock, type Coroutine, DefaultSelector, EVENT_READ, EVENT_WRITE, Loop } from "../mod.ts";
import type { LoopOptions, Selectable, Selector, SelectorKey, Task, TraceEvent } from "../mod.ts";

/** How many turns of the platform promises get to settle in before time moves on. */
const TURNS = 3;
/** What the network gets, in real milliseconds, while a real socket is watched. */
const PATIENCE = 5;

/** One turn of the platform's own event loop: every promise that can settle without waiting does. */
export function platformTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Something to wait for that is ready when the test says so. */
export class FakeSocket implements Selectable {
  static #nextId = 1;
  readonly id: number = FakeSocket.#nextId++;
  /** What it is ready for: `EVENT_READ`, `EVENT_WRITE`, both or-ed together, or 0. */
  ready = 0;
}

/** Clock and selector in one. */
export class World implements Clock, Selector {
  /** Whether an idle wait jumps to its end; if not, only {@linkcode advance} moves the clock. */
  autojump = true;
  /** How often each was called, for tests that count. */
  readonly counts = { select: 0, poll: 0, register: 0, unregister: 0 };
  /** What the fake sockets are watched for. */
  readonly keys: Set<SelectorKey> = new Set();
  readonly #sockets = new DefaultSelector();
  readonly #real = new Set<Selectable>();
  #now = 0;
  #waiting = false;
  #woken = false;
  #moved: (() => void) | null = null;

  now(): number {
    return this.#now;
  }

  /** Moves the clock, and wakes who waits for it. */
  advance(ms: number): void {
    this.#now += ms;
    this.#moved?.();
  }

  /** Moves the clock without telling anybody: what a step that holds the thread for so long does. */
  hold(ms: number): void {
    this.#now += ms;
  }

  register(fileobj: Selectable, events: number, data?: unknown): SelectorKey {
    this.counts.register++;
    if (!(fileobj instanceof FakeSocket)) {
      const key = this.#sockets.register(fileobj, events, data);
      this.#real.add(fileobj);
      return key;
    }
    const key = { fileobj, events, data };
    this.keys.add(key);
    return key;
  }

  unregister(fileobj: Selectable, events: number = EVENT_READ | EVENT_WRITE): void {
    this.counts.unregister++;
    this.#real.delete(fileobj);
    this.#sockets.unregister(fileobj, events);
    for (const key of this.keys) if (key.fileobj === fileobj && (key.events & events)) this.keys.delete(key);
  }

  poll(): [SelectorKey, number][] {
    this.counts.poll++;
    const events = this.#sockets.poll();
    for (const key of this.keys) {
      const ready = key.events & (key.fileobj as FakeSocket).ready;
      if (ready) events.push([key, ready]);
    }
    return events;
  }

  async select(timeout?: number): Promise<[SelectorKey, number][]> {
    this.counts.select++;
    this.#waiting = true;
    this.#woken = false;
    try {
      return await this.#select(timeout);
    } finally {
      this.#waiting = false;
    }
  }

  async #select(timeout = Infinity): Promise<[SelectorKey, number][]> {
    const until = this.#now + timeout;
    for (let turn = 0; turn < TURNS; turn++) {
      await platformTurn();
      const events = this.poll();
      if (events.length > 0 || this.#woken || timeout === 0) return events;
    }
    if (timeout === Infinity || !this.autojump) return this.#idle(until);
    if (this.#real.size > 0) {
      const events = await this.#sockets.select(PATIENCE);
      if (events.length > 0 || this.#woken) return events;
    }
    this.#now = Math.max(this.#now, until);
    return this.poll();
  }

  /** Waits for a real socket, for `wakeup`, or for `advance` to reach `until`. */
  async #idle(until: number): Promise<[SelectorKey, number][]> {
    for (;;) {
      if (this.#now >= until || this.#woken) return this.poll();
      this.#moved = () => this.#sockets.wakeup();
      const events = await this.#sockets.select();
      this.#moved = null;
      if (events.length > 0) return events;
    }
  }

  wakeup(): void {
    this.#woken = this.#waiting;
    this.#sockets.wakeup();
  }

  close(): void {
    this.keys.clear();
    this.#sockets.close();
  }
}

/** A loop in a world of its own, and what came of it. */
export interface Simulation {
  loop: Loop;
  world: World;
  /** What `onError` was told. */
  errors: { error: unknown; task: Task | null }[];
  /** What `trace` was told. */
  trace: TraceEvent[];
}

/** Makes a loop in a simulated world. */
export function simulation(options: LoopOptions = {}): Simulation {
  const world = new World();
  const errors: Simulation["errors"] = [];
  const trace: TraceEvent[] = [];
  const loop = new Loop({
    selector: world,
    clock: world,
    onError: (error, task) => errors.push({ error, task }),
    trace: (event) => trace.push(event),
    ...options,
  });
  return { loop, world, errors, trace };
}

/**
 * Runs `main` in a simulated world and resolves to its value. What reaches `onError` fails the test, unless the test
 * takes it: `errors` is then where it goes.
 */
export async function simulate<T>(
  main: (sim: Simulation) => Coroutine<T>,
  options: LoopOptions & { errors?: Simulation["errors"] } = {},
): Promise<T> {
  const { errors, ...loopOptions } = options;
  const sim = simulation({ trace: undefined, ...loopOptions });
  try {
    return await sim.loop.run(main(sim));
  } finally {
    if (errors) errors.push(...sim.errors);
    else if (sim.errors.length > 0) reportUnexpected(sim.errors);
  }
}

function reportUnexpected(errors: Simulation["errors"]): never {
  throw new AggregateError(errors.map((e) => e.error), `Unexpected calls of onError: ${errors.map((e) => e.error)}`);
}

// ---- What many tests use -------------------------------------------------------------------------------------------

/** What a coroutine throws, or the function that makes it; one of them has to. */
export function* thrownBy(coro: Coroutine<unknown> | (() => Coroutine<unknown>)): Coroutine<any> {
  try {
    yield* typeof coro === "function" ? coro() : coro;
  } catch (error) {
    return error;
  }
  throw new Error("Expected the coroutine to throw");
}

/** The bytes of a text. */
export function bytes(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** The text of some bytes. */
export function text(data: Uint8Array): string {
  return new TextDecoder().decode(data);
}

/** A number from 0 up to, not with, `n`. */
export type Next = (n: number) => number;

/** Numbers that are the same ones for the same seed. */
export function random(seed: number): Next {
  let state = seed >>> 0;
  return (n) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor(state / 2 ** 32 * n);
  };
}
