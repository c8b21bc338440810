/** The kernel cases on Effect. */
import { type Cases, delay, FIRINGS, LONG, OPS, switchesOf, TIMERS, times } from "./cases.ts";

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

/** How many operations a sample does: it takes its time. */
export const ops = OPS / 10;

export const cases: Cases = {
  "switch": (n, ops, start) =>
    run(function* () {
      const count = switchesOf(n, ops);
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
  "spawn and join": (n, ops, start) =>
    run(function* () {
      const count = times(n, ops);
      const done = start();
      for (let k = 0; k < count; k++) yield* together(n, () => Effect.void);
      return done(n * count);
    }),
  "spawn and join with all": (n, ops, start) =>
    run(function* () {
      const count = times(n, ops);
      const done = start();
      for (let k = 0; k < count; k++) {
        yield* Effect.all(Array.from({ length: n }, () => Effect.void), { concurrency: "unbounded" });
      }
      return done(n * count);
    }),
  "timer set and fire": (n, _ops, start) =>
    besides(n, function* () {
      const done = start();
      yield* together(TIMERS, (i) =>
        Effect.gen(function* (): any {
          for (let k = 0; k < FIRINGS; k++) yield* Effect.sleep(delay(i + k));
        }));
      return done(TIMERS * FIRINGS);
    }),
  "timer set and cancel": (n, ops, start) =>
    besides(n, function* () {
      const done = start();
      for (let i = 0; i < ops; i++) yield* Effect.timeout(Effect.void, LONG);
      return done(ops);
    }),
  "queue put and get": (n, ops, start) =>
    run(function* () {
      const queue = yield* Queue.bounded(n);
      const done = start();
      const getter = yield* Effect.fork(Effect.gen(function* (): any {
        for (let i = 0; i < ops; i++) yield* Queue.take(queue);
      }));
      for (let i = 0; i < ops; i++) yield* Queue.offer(queue, i);
      yield* Fiber.join(getter);
      return done(ops);
    }),
  "lock hand-over": (n, ops, start) =>
    run(function* () {
      const lock = Effect.unsafeMakeSemaphore(1);
      const count = times(n, ops);
      function* locks(): any {
        for (let k = 0; k < count; k++) yield* lock.withPermits(1)(Effect.yieldNow());
      }
      const done = start();
      yield* together(n, () => Effect.gen(locks));
      return done(n * count);
    }),
  "event wake": (n, ops, start) =>
    run(function* () {
      const count = times(n, ops);
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
  "cancel": (n, _ops, start) =>
    run(function* () {
      const fibers = [];
      for (let i = 0; i < n; i++) fibers.push(yield* Effect.fork(Effect.never));
      yield* Effect.yieldNow();
      const done = start();
      for (const fiber of fibers) yield* Fiber.interrupt(fiber);
      return done(n);
    }),
  "switch at depth": (n, ops, start) =>
    run(function* () {
      const done = start();
      yield* deep(n, ops / 4);
      return done(ops / 4);
    }),
};
