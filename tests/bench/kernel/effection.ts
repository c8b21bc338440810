/** The kernel cases on effection. It has no bounded queue and no lock. */
import { type Cases, delay, FIRINGS, LONG, OPS, switchesOf, TIMERS, times } from "./cases.ts";

// The name is not a literal, so that a machine without the npm registry can check this file.
const npm: string = "npm:effection@4.1.1";
const { action, all, call, createQueue, race, run, sleep, spawn, suspend, withResolvers } = await import(npm);

type Operation = Generator<any, any, any>;

function* nothing(): Operation {}

/** The least that goes through its scheduler. */
function yieldNow() {
  return action((resolve: () => void) => {
    resolve();
    return () => {};
  });
}

function* switches(count: number): Operation {
  for (let i = 0; i < count; i++) yield* yieldNow();
}

function* switchesBehind(gate: any, count: number): Operation {
  yield* gate;
  yield* switches(count);
}

function* deep(depth: number, count: number): Operation {
  if (depth > 1) yield* deep(depth - 1, count);
  else yield* switches(count);
}

function* together(n: number, body: (i: number) => Operation): Operation {
  const tasks = [];
  for (let i = 0; i < n; i++) tasks.push(yield* spawn(() => body(i)));
  for (const task of tasks) yield* task;
}

function* besides(n: number, body: () => Operation): Operation {
  for (let i = 0; i < n; i++) yield* spawn(() => sleep(LONG + i * 7919 % n));
  return yield* body();
}

/** How many operations a sample does: it takes its time. */
export const ops = OPS / 25;

export const cases: Cases = {
  "switch": (n, ops, start) =>
    run(function* () {
      const count = switchesOf(n, ops);
      const gate = withResolvers();
      const tasks: Operation[] = [];
      for (let i = 0; i < n; i++) tasks.push(yield* spawn(() => switchesBehind(gate.operation, count)));
      yield* sleep(0);
      const done = start();
      gate.resolve();
      for (const task of tasks) yield* task;
      return done(n * count);
    }),
  "spawn and join": (n, ops, start) =>
    run(function* () {
      const count = times(n, ops);
      const done = start();
      for (let k = 0; k < count; k++) yield* together(n, nothing);
      return done(n * count);
    }),
  "spawn and join with all": (n, ops, start) =>
    run(function* () {
      const count = times(n, ops);
      const done = start();
      for (let k = 0; k < count; k++) yield* all(Array.from({ length: n }, () => call(nothing)));
      return done(n * count);
    }),
  "timer set and fire": (n, _ops, start) =>
    run(() =>
      besides(n, function* () {
        const done = start();
        yield* together(TIMERS, function* (i) {
          for (let k = 0; k < FIRINGS; k++) yield* sleep(delay(i + k));
        });
        return done(TIMERS * FIRINGS);
      })
    ),
  "timer set and cancel": (n, ops, start) =>
    run(() =>
      besides(n, function* () {
        const done = start();
        for (let i = 0; i < ops; i++) yield* race([sleep(LONG), nothing()]);
        return done(ops);
      })
    ),
  "queue put and get": (_n, ops, start) =>
    run(function* () {
      const queue = createQueue();
      const done = start();
      const getter = yield* spawn(function* () {
        for (let i = 0; i < ops; i++) yield* queue.next();
      });
      for (let i = 0; i < ops; i++) {
        queue.add(i);
        yield* yieldNow();
      }
      yield* getter;
      return done(ops);
    }),
  "event wake": (n, ops, start) =>
    run(function* () {
      const count = times(n, ops);
      const events = Array.from({ length: count }, () => withResolvers());
      function* waits(): Operation {
        for (let k = 0; k < count; k++) yield* events[k].operation;
      }
      const tasks: Operation[] = [];
      for (let i = 0; i < n; i++) tasks.push(yield* spawn(waits));
      yield* sleep(0);
      const done = start();
      for (let k = 0; k < count; k++) {
        events[k].resolve();
        yield* yieldNow();
      }
      for (const task of tasks) yield* task;
      return done(n * count);
    }),
  "cancel": (n, _ops, start) =>
    run(function* () {
      const tasks = [];
      for (let i = 0; i < n; i++) tasks.push(yield* spawn(() => suspend()));
      yield* sleep(0);
      const done = start();
      for (const task of tasks) yield* task.halt();
      return done(n);
    }),
  "switch at depth": (n, ops, start) =>
    run(function* () {
      const done = start();
      yield* deep(n, ops / 4);
      return done(ops / 4);
    }),
};
