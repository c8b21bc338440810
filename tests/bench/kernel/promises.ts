/** The kernel cases on the platform's own promises and timers. */
import { type Cases, delay, FIRINGS, LONG, type Stopwatch, switchesOf, TIMERS, times } from "./cases.ts";

async function nothing(): Promise<void> {}

/** The like of `checkpoint()`: an async function that waits once. */
async function checkpoint(): Promise<void> {
  await null;
}

async function switches(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await checkpoint();
}

/** What is the floor: no function, nothing to wait for. */
async function bareSwitches(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await null;
}

async function deep(depth: number, count: number): Promise<void> {
  if (depth > 1) await deep(depth - 1, count);
  else await switches(count);
}

/** Runs `n` of them to their end. */
async function together(n: number, body: (i: number) => Promise<void>): Promise<void> {
  const tasks = Array.from({ length: n }, (_, i) => body(i));
  for (const task of tasks) await task;
}

/** How many timers are pending. They stay from sample to sample, so that none has to collect those of the one before. */
let crowd = 0;

/** Runs `body` while `n` timers are pending. */
function besides(n: number, body: () => Promise<number>): Promise<number> {
  for (; crowd < n; crowd++) setTimeout(() => {}, LONG + crowd * 7919 % n);
  return body();
}

/** Bare callbacks: the least one can do with a timer. */
function fireTimers(start: Stopwatch): Promise<number> {
  const done = start();
  return new Promise((resolve) => {
    let left = TIMERS * FIRINGS;
    const set = (i: number, k: number) =>
      setTimeout(() => {
        if (k > 1) set(i, k - 1);
        if (--left === 0) resolve(done(TIMERS * FIRINGS));
      }, delay(i + k));
    for (let i = 0; i < TIMERS; i++) set(i, FIRINGS);
  });
}

function cancelTimers(ops: number, start: Stopwatch): Promise<number> {
  const done = start();
  for (let i = 0; i < ops; i++) {
    const timer = setTimeout(() => {}, LONG / 2 + i);
    clearTimeout(timer);
  }
  return Promise.resolve(done(ops));
}

/** A bounded queue as one writes it over promises. */
class Queue<T> {
  readonly #items: T[] = [];
  readonly #getters: ((item: T) => void)[] = [];
  readonly #putters: (() => void)[] = [];

  constructor(readonly size: number) {}

  async put(item: T): Promise<void> {
    while (this.#items.length >= this.size) await new Promise<void>((resolve) => this.#putters.push(resolve));
    const getter = this.#getters.shift();
    if (getter) getter(item);
    else this.#items.push(item);
  }

  async get(): Promise<T> {
    if (this.#items.length === 0) return await new Promise<T>((resolve) => this.#getters.push(resolve));
    const item = this.#items.shift()!;
    this.#putters.shift()?.();
    return item;
  }
}

/** A lock that is handed over in the order it was asked for. */
class Lock {
  #held = false;
  readonly #waiters: (() => void)[] = [];

  async acquire(): Promise<void> {
    if (this.#held) await new Promise<void>((resolve) => this.#waiters.push(resolve));
    this.#held = true;
  }

  release(): void {
    const next = this.#waiters.shift();
    if (next) next();
    else this.#held = false;
  }
}

/** Waits for ever, unless `signal` aborts. */
function forever(signal: AbortSignal): Promise<void> {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));
}

export const cases: Cases = {
  "switch": async (n, ops, start) => {
    const gate = Promise.withResolvers<void>();
    const tasks = Array.from({ length: n }, () => gate.promise.then(() => switches(switchesOf(n, ops))));
    await checkpoint();
    const done = start();
    gate.resolve();
    for (const task of tasks) await task;
    return done(n * switchesOf(n, ops));
  },
  "bare switch": async (n, ops, start) => {
    const gate = Promise.withResolvers<void>();
    const tasks = Array.from({ length: n }, () => gate.promise.then(() => bareSwitches(switchesOf(n, ops))));
    await checkpoint();
    const done = start();
    gate.resolve();
    for (const task of tasks) await task;
    return done(n * switchesOf(n, ops));
  },
  "spawn and join": async (n, ops, start) => {
    const done = start();
    for (let k = times(n, ops); k > 0; k--) await together(n, nothing);
    return done(n * times(n, ops));
  },
  "spawn and join with all": async (n, ops, start) => {
    const done = start();
    for (let k = times(n, ops); k > 0; k--) await Promise.all(Array.from({ length: n }, nothing));
    return done(n * times(n, ops));
  },
  "timer set and fire": (n, _ops, start) => besides(n, () => fireTimers(start)),
  "timer set and cancel": (n, ops, start) => besides(n, () => cancelTimers(ops, start)),
  "queue put and get": async (n, ops, start) => {
    const queue = new Queue<number>(n);
    const done = start();
    const getter = (async () => {
      for (let i = 0; i < ops; i++) await queue.get();
    })();
    for (let i = 0; i < ops; i++) await queue.put(i);
    await getter;
    return done(ops);
  },
  "lock hand-over": async (n, ops, start) => {
    const lock = new Lock();
    const done = start();
    await together(n, async () => {
      for (let k = times(n, ops); k > 0; k--) {
        await lock.acquire();
        try {
          await checkpoint();
        } finally {
          lock.release();
        }
      }
    });
    return done(n * times(n, ops));
  },
  "event wake": async (n, ops, start) => {
    let event = Promise.withResolvers<void>();
    const count = times(n, ops);
    const tasks = Array.from({ length: n }, async () => {
      for (let k = 0; k < count; k++) await event.promise;
    });
    const done = start();
    for (let k = 0; k < count; k++) {
      const set = event;
      event = Promise.withResolvers<void>();
      set.resolve();
      await set.promise;
    }
    for (const task of tasks) await task;
    return done(n * count);
  },
  "cancel": async (n, _ops, start) => {
    const controllers = Array.from({ length: n }, () => new AbortController());
    const tasks = controllers.map(async ({ signal }) => {
      try {
        await forever(signal);
      } catch { /* It was cancelled, as it should. */ }
    });
    const done = start();
    for (const controller of controllers) controller.abort();
    for (const task of tasks) await task;
    return done(n);
  },
  "switch at depth": async (n, ops, start) => {
    const done = start();
    await deep(n, ops / 4);
    return done(ops / 4);
  },
};
