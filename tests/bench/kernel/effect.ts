/** The kernel cases on Effect. */
import { type Cases, delay, FIRINGS, LONG, OPS, start, switchesOf, TIMERS, times } from "./cases.ts";

// The name is not a literal, so that a machine without the npm registry can check this file.
const npm: string = "npm:effect@3.22.4";
const { Deferred, Effect, Fiber, Queue } = await import(npm);

function run(body: () => Generator<any, number, any>): Promise<number> {
  return Effect.runPromise(Effect.gen(body));
}

const switches = (count: number) =>
  Effect.gen(function* (): any {
    for (let i = 0; i < count; i++) yield* Effect.yieldNow();
  });

const deep = (depth: number, count: number): any =>
  depth > 1
    ? Effect.gen(function* (): any {
      yield* deep(depth - 1, count);
    })
    : switches(count);

function* together(n: number, body: (i: number) => any): any {
  const fibers = [];
  for (let i = 0; i < n; i++) fibers.push(yield* Effect.fork(body(i)));
  for (const fiber of fibers) yield* Fiber.join(fiber);
}

/** Runs `body` while `n` fibers sleep. */
function besides(n: number, body: () => Generator<any, number, any>): Promise<number> {
  return run(function* () {
    const sleepers = [];
    for (let i = 0; i < n; i++) sleepers.push(yield* Effect.fork(Effect.sleep(LONG + i * 7919 % n)));
    yield* Effect.yieldNow();
    const result = yield* body();
    yield* Fiber.interruptAll(sleepers);
    return result;
  });
}

/** How many of these, for it takes its time. */
const FEWER = OPS / 10;

export const cases: Cases = {
  "switch": (n) =>
    run(function* () {
      const count = switchesOf(n) / 2;
      const gate = yield* Deferred.make();
      const fibers = [];
      for (let i = 0; i < n; i++) {
        fibers.push(yield* Effect.fork(Effect.zipRight(Deferred.await(gate), switches(count))));
      }
      yield* Effect.yieldNow();
      const done = start();
      yield* Deferred.succeed(gate, undefined);
      for (const fiber of fibers) yield* Fiber.join(fiber);
      return done(n * count);
    }),
  "spawn and join": (n) =>
    run(function* () {
      const count = Math.ceil(times(n) / 10);
      const done = start();
      for (let k = 0; k < count; k++) yield* together(n, () => Effect.void);
      return done(n * count);
    }),
  "spawn and join with all": (n) =>
    run(function* () {
      const count = Math.ceil(times(n) / 10);
      const done = start();
      for (let k = 0; k < count; k++) {
        yield* Effect.all(Array.from({ length: n }, () => Effect.void), { concurrency: "unbounded" });
      }
      return done(n * count);
    }),
  "timer set and fire": (n) =>
    besides(n, function* () {
      const done = start();
      yield* together(TIMERS, (i) =>
        Effect.gen(function* (): any {
          for (let k = 0; k < FIRINGS; k++) yield* Effect.sleep(delay(i + k));
        }));
      return done(TIMERS * FIRINGS);
    }),
  "timer set and cancel": (n) =>
    besides(n, function* () {
      const done = start();
      for (let i = 0; i < FEWER; i++) yield* Effect.timeout(Effect.void, LONG);
      return done(FEWER);
    }),
  "queue put and get": (n) =>
    run(function* () {
      const queue = yield* Queue.bounded(n);
      const done = start();
      const getter = yield* Effect.fork(Effect.gen(function* (): any {
        for (let i = 0; i < FEWER; i++) yield* Queue.take(queue);
      }));
      for (let i = 0; i < FEWER; i++) yield* Queue.offer(queue, i);
      yield* Fiber.join(getter);
      return done(FEWER);
    }),
  "lock hand-over": (n) =>
    run(function* () {
      const lock = Effect.unsafeMakeSemaphore(1);
      const count = Math.ceil(times(n) / 10);
      function* locks(): any {
        for (let k = 0; k < count; k++) yield* lock.withPermits(1)(Effect.yieldNow());
      }
      const done = start();
      yield* together(n, () => Effect.gen(locks));
      return done(n * count);
    }),
  "event wake": (n) =>
    run(function* () {
      const count = Math.ceil(times(n) / 10);
      const events: any[] = [];
      for (let k = 0; k < count; k++) events.push(yield* Deferred.make());
      function* waits(): any {
        for (let k = 0; k < count; k++) yield* Deferred.await(events[k]);
      }
      const fibers = [];
      for (let i = 0; i < n; i++) fibers.push(yield* Effect.fork(Effect.gen(waits)));
      yield* Effect.yieldNow();
      const done = start();
      for (let k = 0; k < count; k++) {
        yield* Deferred.succeed(events[k], undefined);
        yield* Effect.yieldNow();
      }
      for (const fiber of fibers) yield* Fiber.join(fiber);
      return done(n * count);
    }),
  "cancel": (n) =>
    run(function* () {
      const fibers = [];
      for (let i = 0; i < n; i++) fibers.push(yield* Effect.fork(Effect.never));
      yield* Effect.yieldNow();
      const done = start();
      for (const fiber of fibers) yield* Fiber.interrupt(fiber);
      return done(n);
    }),
  "switch at depth": (n) =>
    run(function* () {
      const done = start();
      yield* deep(n, FEWER);
      return done(FEWER);
    }),
};
