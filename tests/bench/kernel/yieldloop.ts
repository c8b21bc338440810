/** The kernel cases on yieldloop. */
import * as yieldloop from "../../../mod.ts";
import { type Cases, delay, FIRINGS, LONG, type Stopwatch, switchesOf, TIMERS, times } from "./cases.ts";

const { all, checkpoint, Event, failAfter, Lock, Loop, Queue, sleep } = yieldloop;
type Coroutine<T = void> = yieldloop.Coroutine<T>;

/** A trampolined `yield*`, if the kernel has one. */
const call = (yieldloop as { call?: <T>(coro: Coroutine<T>) => Coroutine<T> }).call;

function* nothing(): Coroutine {}

function* switches(count: number): Coroutine {
  for (let i = 0; i < count; i++) yield* checkpoint();
}

function* switchesBehind(gate: yieldloop.Event, count: number): Coroutine {
  yield* gate.wait();
  for (let i = 0; i < count; i++) yield* checkpoint();
}

function* deep(depth: number, count: number): Coroutine {
  if (depth > 1) yield* deep(depth - 1, count);
  else yield* switches(count);
}

function* deepByCall(depth: number, count: number): Coroutine {
  if (depth > 1) yield* call!(deepByCall(depth - 1, count));
  else yield* switches(count);
}

function run(body: (loop: yieldloop.Loop) => Coroutine<number>): Promise<number> {
  const loop = new Loop();
  return loop.run(body(loop)).finally(() => loop.selector.close());
}

/** Runs `n` tasks to their end. */
function* together(loop: yieldloop.Loop, n: number, coro: (i: number) => Coroutine): Coroutine {
  const tasks = Array.from({ length: n }, (_, i) => loop.createTask(coro(i)));
  for (const task of tasks) yield* task.join();
}

/** Loops in which `n` tasks sleep. They stay from sample to sample, so that none has to collect what the last one left. */
const crowds = new Map<number, yieldloop.Loop>();

/** Runs `body` while `n` tasks sleep. */
async function besides(n: number, body: (loop: yieldloop.Loop) => Coroutine<number>): Promise<number> {
  const crowd = crowds.get(n) ?? new Loop();
  if (!crowds.has(n)) {
    crowds.set(n, crowd);
    for (let i = 0; i < n; i++) crowd.createTask(sleep(LONG + i * 7919 % n));
    crowd.runForever();
  }
  return await crowd.createTask(body(crowd));
}

function* fireTimers(loop: yieldloop.Loop, start: Stopwatch): Coroutine<number> {
  const done = start();
  yield* together(loop, TIMERS, function* (i) {
    for (let k = 0; k < FIRINGS; k++) yield* sleep(delay(i + k));
  });
  return done(TIMERS * FIRINGS);
}

function* cancelTimers(ops: number, start: Stopwatch): Coroutine<number> {
  const done = start();
  for (let i = 0; i < ops; i++) yield* failAfter(LONG / 2 + i, nothing());
  return done(ops);
}

export const cases: Cases = {
  "switch": (n, ops, start) =>
    run(function* (loop) {
      const gate = new Event();
      const tasks = Array.from({ length: n }, () => loop.createTask(switchesBehind(gate, switchesOf(n, ops))));
      yield* checkpoint();
      const done = start();
      gate.set();
      for (const task of tasks) yield* task.join();
      return done(n * switchesOf(n, ops));
    }),
  "spawn and join": (n, ops, start) =>
    run(function* (loop) {
      const done = start();
      for (let k = times(n, ops); k > 0; k--) yield* together(loop, n, nothing);
      return done(n * times(n, ops));
    }),
  "spawn and join with all": (n, ops, start) =>
    run(function* () {
      const done = start();
      for (let k = times(n, ops); k > 0; k--) yield* all(Array.from({ length: n }, nothing));
      return done(n * times(n, ops));
    }),
  "timer set and fire": (n, _ops, start) => besides(n, (loop) => fireTimers(loop, start)),
  "timer set and cancel": (n, ops, start) => besides(n, () => cancelTimers(ops, start)),
  "queue put and get": (n, ops, start) =>
    run(function* (loop) {
      const queue = new Queue<number>(n);
      const done = start();
      const getter = loop.createTask(function* () {
        for (let i = 0; i < ops; i++) yield* queue.get();
      }());
      for (let i = 0; i < ops; i++) yield* queue.put(i);
      yield* getter.join();
      return done(ops);
    }),
  "lock hand-over": (n, ops, start) =>
    run(function* (loop) {
      const lock = new Lock();
      const done = start();
      yield* together(loop, n, function* () {
        for (let k = times(n, ops); k > 0; k--) {
          using _ = yield* lock.acquire();
          yield* checkpoint();
        }
      });
      return done(n * times(n, ops));
    }),
  "event wake": (n, ops, start) =>
    run(function* (loop) {
      const event = new Event();
      const count = times(n, ops);
      function* waits(): Coroutine {
        for (let k = 0; k < count; k++) yield* event.wait();
      }
      const tasks = Array.from({ length: n }, () => loop.createTask(waits()));
      yield* checkpoint();
      const done = start();
      for (let k = 0; k < count; k++) {
        event.set();
        event.clear();
        yield* checkpoint();
      }
      for (const task of tasks) yield* task.join();
      return done(n * count);
    }),
  "cancel": (n, _ops, start) =>
    run(function* (loop) {
      const never = new Event();
      const tasks = Array.from({ length: n }, () => loop.createTask(never.wait()));
      yield* checkpoint();
      const done = start();
      for (const task of tasks) task.cancel();
      for (const task of tasks) yield* task.wait();
      return done(n);
    }),
  "switch at depth": (n, ops, start) =>
    run(function* () {
      const done = start();
      yield* deep(n, ops / 4);
      return done(ops / 4);
    }),
  ...(call && {
    "switch at depth by call": (n: number, ops: number, start: Stopwatch) =>
      run(function* () {
        const done = start();
        yield* deepByCall(n, ops / 4);
        return done(ops / 4);
      }),
  }),
};
