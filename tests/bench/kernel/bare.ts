/**
 * The floor: what the platform's generators cost in a loop that does nothing but step them in turn. There are no tasks to
 * join or cancel, no clock, no errors; an op is looked up by its name, and that is all.
 */
import { type Cases, switchesOf, times } from "./cases.ts";

type Op = readonly [name: string];
type Coroutine = Generator<Op, void, void>;

const CHECKPOINT: Op = ["checkpoint"];

function* checkpoint(): Coroutine {
  yield CHECKPOINT;
}

function* nothing(): Coroutine {}

function* switches(count: number): Coroutine {
  for (let i = 0; i < count; i++) yield* checkpoint();
}

function* deep(depth: number, count: number): Coroutine {
  if (depth > 1) yield* deep(depth - 1, count);
  else yield* switches(count);
}

function* put(items: number[], room: number, item: number): Coroutine {
  do yield* checkpoint(); while (items.length >= room);
  items.push(item);
}

function* get(items: number[]): Generator<Op, number, void> {
  do yield* checkpoint(); while (items.length === 0);
  return items.shift()!;
}

/** Steps all in turn until they have ended. There is room for all in the ring, so it is never full. */
function run(coros: Coroutine[]): void {
  const mask = 2 ** Math.ceil(Math.log2(coros.length + 1)) - 1;
  const ring = new Array<Coroutine>(mask + 1);
  let head = 0;
  let tail = 0;
  const append = (coro: Coroutine) => void (ring[tail++ & mask] = coro);
  const ops = new Map([["checkpoint", append]]);
  coros.forEach(append);
  while (head < tail) {
    const coro = ring[head++ & mask];
    const { done, value } = coro.next();
    if (!done) ops.get(value[0])!(coro);
  }
}

function many(n: number, make: () => Coroutine): Coroutine[] {
  return Array.from({ length: n }, make);
}

export const cases: Cases = {
  "switch": (n, ops, start) => {
    const coros = many(n, () => switches(switchesOf(n, ops)));
    const done = start();
    run(coros);
    return Promise.resolve(done(n * switchesOf(n, ops)));
  },
  "spawn and join": (n, ops, start) => {
    const done = start();
    for (let k = times(n, ops); k > 0; k--) run(many(n, nothing));
    return Promise.resolve(done(n * times(n, ops)));
  },
  "queue put and get": (n, ops, start) => {
    const items: number[] = [];
    const done = start();
    run([
      function* () {
        for (let i = 0; i < ops; i++) yield* put(items, n, i);
      }(),
      function* () {
        for (let i = 0; i < ops; i++) yield* get(items);
      }(),
    ]);
    return Promise.resolve(done(ops));
  },
  "switch at depth": (n, ops, start) => {
    const done = start();
    run([deep(n, ops / 4)]);
    return Promise.resolve(done(ops / 4));
  },
};
