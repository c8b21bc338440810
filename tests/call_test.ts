/** `call`: coroutines on a stack of the task's instead of the engine's. */
import { assert, assertEquals, assertInstanceOf, assertRejects, assertStrictEquals, assertThrows } from "@std/assert";
import {
  call,
  Cancelled,
  cancelScope,
  checkpoint,
  type Coroutine,
  failAfter,
  Loop,
  park,
  ParkingLot,
  shield,
  socketPair,
  TaskError,
  TimeoutError,
} from "../mod.ts";

function* depth(n: number): Coroutine<number> {
  return n === 0 ? 0 : 1 + (yield* call(depth(n - 1)));
}

Deno.test("K13 recursion through call overflows no stack at depth 10^6", async () => {
  assertEquals(await new Loop().run(depth(1_000_000)), 1_000_000);
});

Deno.test("K14 call yields one op, with the coroutine that is called", () => {
  const coro = depth(0);
  assertEquals(call(coro).next(), { value: ["call", coro], done: false });
});

Deno.test("call hands on what the called coroutine throws, and the caller can catch it", async () => {
  const error = new Error("from below");
  function* below(): Coroutine<never> {
    yield* checkpoint();
    throw error;
  }
  function* middle(): Coroutine {
    yield* call(below());
  }
  function* main(): Coroutine<unknown> {
    try {
      yield* call(middle());
    } catch (caught) {
      return caught;
    }
  }
  assertStrictEquals(await new Loop().run(main()), error);
});

Deno.test("call: what nobody catches ends the task, through all that called", async () => {
  const error = new Error("from below");
  function* failing(n: number): Coroutine {
    yield* checkpoint();
    if (n === 0) throw error;
    yield* call(failing(n - 1));
  }
  for (const n of [1, 3]) assertStrictEquals(await assertRejects(() => new Loop().run(failing(n))), error);
});

Deno.test("call: tasks that are inside calls at the same time each come back to their own callers", async () => {
  const loop = new Loop();
  function* called(name: string, n: number): Coroutine<string> {
    yield* checkpoint();
    return n === 0 ? name : `${yield* call(called(name, n - 1))}${n}`;
  }
  await loop.run((function* (): Coroutine {
    const tasks = ["a", "b", "c"].map((name, i) => loop.createTask(called(name, i + 1)));
    const values: string[] = [];
    for (const task of tasks) values.push(yield* task.join());
    assertEquals(values, ["a1", "b12", "c123"]);
  })());
});

Deno.test("C1 a cancellation unwinds called coroutines from the inside out, shielded cleanup included", async () => {
  const loop = new Loop();
  const order: string[] = [];
  function* level(n: number): Coroutine {
    try {
      if (n === 0) yield* park(new ParkingLot("nothing"));
      else yield* call(level(n - 1));
      order.push("not reached");
    } finally {
      yield* shield(call(checkpoint())); // The other way round the call would be refused: its scope is cancelled.
      order.push(`cleaned up ${n}`);
    }
  }
  function* main(): Coroutine {
    const task = loop.createTask(level(2));
    for (let i = 0; i < 10; i++) yield* checkpoint();
    task.cancel();
    yield* task.wait();
    assertEquals(task.cancelled, true);
    assertThrows(() => task.result(), TaskError);
  }
  await loop.run(main());
  assertEquals(order, ["cleaned up 0", "cleaned up 1", "cleaned up 2"]);
});

Deno.test("C9 a scope inside a called coroutine catches its own cancellation", async () => {
  function* inner(): Coroutine<string | undefined> {
    return yield* cancelScope(function* (scope) {
      scope.cancel();
      yield* call(depth(3));
      return "not reached";
    });
  }
  function* main(): Coroutine<string | undefined> {
    return yield* call(inner());
  }
  assertEquals(await new Loop().run(main()), undefined);
});

Deno.test("K6 call refuses what is not a coroutine, and one that was used, and says so at the place", async () => {
  const loop = new Loop();
  const run = (what: unknown) =>
    loop.run(function* (): Coroutine {
      yield* call(what as Coroutine);
    }());
  await assertRejects(() => run(depth), TypeError, "call it, as in call(depth())");
  await assertRejects(() => run(Promise.resolve()), TypeError, "until(promise)");
  await assertRejects(() => run(undefined), TypeError, "Cannot call undefined");
  const used = depth(0);
  await loop.run(used);
  await assertRejects(() => run(used), TypeError, "it runs already, or has run");
});

Deno.test("T1 the TimeoutError of an unfinished sockSendall says in its cause how many bytes were handed over", async () => {
  const loop = new Loop();
  const [left, right] = socketPair();
  const error = await assertRejects(
    () => loop.run(failAfter(5, loop.sockSendall(left, new Uint8Array(1e6)))),
    TimeoutError,
  );
  assertInstanceOf(error.cause, Cancelled);
  assert(error.cause.bytesSent! > 0 && error.cause.bytesSent! < 1e6);
  left.abort();
  right.abort();
});
