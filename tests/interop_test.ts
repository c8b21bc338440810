/**
 * The loop and the program around it: promises, callbacks, signals, and what a task carries with it.
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
  connect,
  type Coroutine,
  currentTask,
  Event,
  failAfter,
  listen,
  Loop,
  moveOnAfter,
  type Op,
  Queue,
  runningLoop,
  Semaphore,
  shield,
  sleep,
  Stream,
  type Task,
  TaskError,
  taskGroup,
  TaskLocal,
  until,
  WouldBlock,
} from "../mod.ts";
import { needs } from "./permissions.ts";
import { platformTurn, simulate, simulation, thrownBy } from "./world.ts";

// ---- From outside the loop -------------------------------------------------------------------------------------

const OUTSIDE: Record<string, (call: () => void) => unknown> = {
  "a promise callback": (call) => Promise.resolve().then(call),
  "an immediate": (call) => setImmediate(call),
  "a timer": (call) => setTimeout(call, 1),
  "an event handler"(call) {
    const target = new EventTarget();
    target.addEventListener("go", call, { once: true });
    setImmediate(() => target.dispatchEvent(new globalThis.Event("go")));
  },
  "a message port"(call) {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (call(), port1.close(), port2.close());
    port2.postMessage("go");
  },
};

/** Runs `main`, and has `call` called as `from` does when all tasks of the loop wait. */
async function calledWhileItWaits<T>(
  from: (call: () => void) => unknown,
  main: Coroutine<T>,
  call: (loop: Loop) => void,
): Promise<T> {
  const loop = new Loop();
  const running = loop.run(main);
  await platformTurn();
  assertEquals([...loop.tasks].map((task) => task.op?.[0]), ["park"]);
  from(() => call(loop));
  return await running;
}

for (const [where, from] of Object.entries(OUTSIDE)) {
  Deno.test(`S1 event.set in ${where} wakes a waiting task`, async () => {
    const event = new Event();
    await calledWhileItWaits(from, event.wait(), () => event.set());
    assert(event.isSet);
  });

  Deno.test(`S4 queue.putNowait in ${where} wakes a waiting task`, async () => {
    const queue = new Queue<string>(1);
    assertEquals(await calledWhileItWaits(from, queue.get(), () => queue.putNowait("hello")), "hello");
  });

  Deno.test(`K7 createTask in ${where} wakes an idle loop`, async () => {
    const event = new Event();
    function* task(): Coroutine<void> {
      event.set();
    }
    await calledWhileItWaits(from, event.wait(), (loop) => void loop.createTask(task()));
  });
}

Deno.test("S4 a stream of items from outside arrives whole and in order", async () => {
  const queue = new Queue<number>();
  let next = 0;
  const feed = () => {
    for (let i = 0; i < 10; i++) queue.putNowait(next++);
    if (next < 100) setImmediate(feed);
    else queue.close();
  };
  setImmediate(feed);
  const taken: number[] = [];
  await new Loop().run((function* () {
    while (!queue.closed || queue.size > 0) taken.push(yield* queue.get());
  })());
  assertEquals(taken, [...Array(100).keys()]);
});

Deno.test("S4 getNowait, release, close and taskDone from outside wake who waits for them", async () => {
  const queue = new Queue<number>(1);
  queue.putNowait(1);
  setImmediate(() => assertEquals(queue.getNowait(), 1));
  await new Loop().run(queue.put(2));
  setImmediate(() => queue.taskDone());
  setImmediate(() => queue.taskDone());
  await new Loop().run(queue.join());
  const semaphore = new Semaphore(1);
  setImmediate(() => semaphore.release());
  await new Loop().run((function* () {
    yield* semaphore.acquire();
    yield* semaphore.acquire();
  })());
  assertEquals(queue.getNowait(), 2);
  setImmediate(() => queue.close());
  await assertRejects(() => new Loop().run(queue.get()), ClosedError, "it is closed");
  assertThrows(() => new Queue().getNowait(), WouldBlock);
});

Deno.test("S1 an event shared by two loops wakes the tasks of both", async () => {
  const event = new Event();
  const other = new Loop().run(event.wait());
  await new Loop().run((function* () {
    yield* sleep(1);
    event.set();
  })());
  await other;
});

Deno.test("C3 task.cancel from outside interrupts a task that waits", async () => {
  const loop = new Loop();
  const task = loop.createTask(new Event().wait());
  setImmediate(() => task.cancel("outside"));
  await loop.run((function* () {
    yield* task.wait();
  })());
  assert(task.cancelled);
});

// ---- await task ------------------------------------------------------------------------------------------------

Deno.test("K16 C11 a task can be awaited: its value, its very error, TaskError if it was cancelled", async () => {
  const oops = new Error("oops");
  function* fail(): Coroutine<never> {
    throw oops;
  }
  const { loop, errors } = simulation();
  function* value(): Coroutine<number> {
    yield* sleep(5);
    return 42;
  }
  const tasks = [loop.createTask(value()), loop.createTask(fail()), loop.createTask(sleep(1000))] as Task<any>[];
  const awaited = Promise.allSettled(tasks.map((task) => task.then()));
  tasks[2].cancel("why");
  await loop.run(sleep(10));
  const [first, second, third] = await awaited;
  assertEquals(first, { status: "fulfilled", value: 42 });
  assertStrictEquals((second as PromiseRejectedResult).reason, oops);
  const { reason } = third as PromiseRejectedResult;
  assertInstanceOf(reason, TaskError);
  assertEquals((reason.cause as Cancelled).reason, "why");
  assertEquals(errors, []);
  assertEquals(await tasks[0], 42); // and again, when it has long ended
});

// ---- run({ signal }) -------------------------------------------------------------------------------------------

Deno.test("K10 K16 run({ signal }): an abort cancels main with the signal's reason, and all else after it", async () => {
  const log: string[] = [];
  const { loop } = simulation();
  const controller = new AbortController();
  function* main(): Coroutine<void> {
    loop.createTask((function* () {
      try {
        yield* new Event().wait();
      } finally {
        log.push("child");
      }
    })());
    try {
      yield* new Event().wait();
    } finally {
      yield* shield(sleep(10));
      log.push("main");
    }
  }
  setImmediate(() => controller.abort("shut down"));
  const error = await assertRejects(() => loop.run(main(), { signal: controller.signal }), Cancelled);
  assertEquals([error.reason, log], ["shut down", ["main", "child"]]);
});

Deno.test("K16 run({ signal }): aborted before, main gets Cancelled at its first op", async () => {
  const log: string[] = [];
  await assertRejects(
    () =>
      simulation().loop.run(
        (function* () {
          log.push("started");
          yield* checkpoint();
          log.push("not reached");
        })(),
        { signal: AbortSignal.abort("early") },
      ),
    Cancelled,
    "The task was cancelled: early",
  );
  assertEquals(log, ["started"]);
});

Deno.test("K16 run({ signal }): an abort after the end changes nothing, and no listener is left", async () => {
  const controller = new AbortController();
  const { signal } = controller;
  let listeners = 0;
  const add = signal.addEventListener.bind(signal) as (...args: unknown[]) => void;
  const remove = signal.removeEventListener.bind(signal) as (...args: unknown[]) => void;
  signal.addEventListener = (...args: unknown[]) => (listeners++, add(...args));
  signal.removeEventListener = (...args: unknown[]) => (listeners--, remove(...args));
  const { loop } = simulation();
  assertEquals(
    await loop.run(
      (function* () {
        yield* sleep(1);
        assertEquals(listeners, 1);
        return "done";
      })(),
      { signal },
    ),
    "done",
  );
  assertEquals(listeners, 0);
  controller.abort();
  assertEquals(await loop.run(sleep(1)), undefined);
});

Deno.test("K16 run({ signal }): main may catch it and go on to a value, as with any cancellation", async () => {
  const controller = new AbortController();
  function* main(): Coroutine<string> {
    try {
      yield* new Event().wait();
    } catch (error) {
      assertInstanceOf(error, Cancelled);
    }
    return "partial result";
  }
  setImmediate(() => controller.abort());
  assertEquals(await simulation().loop.run(main(), { signal: controller.signal }), "partial result");
});

// ---- K16 until -------------------------------------------------------------------------------------------------

Deno.test("K16 until: value, very rejection, already settled, a thenable, a function", async () => {
  await simulate(function* () {
    const oops = new Error("oops");
    assertEquals(yield* until(Promise.resolve(1)), 1);
    assertEquals(yield* until(platformTurn().then(() => 2)), 2);
    assertStrictEquals(yield* thrownBy(until(Promise.reject(oops))), oops);
    assertStrictEquals(yield* thrownBy(until(platformTurn().then(() => Promise.reject(oops)))), oops);
    assertEquals(yield* until({ then: (resolve: (n: number) => void) => resolve(3) } as PromiseLike<number>), 3);
    assertEquals(yield* until((signal) => Promise.resolve(signal.aborted)), false);
    assertStrictEquals(
      yield* thrownBy(until(() => {
        throw oops;
      })),
      oops,
    );
    assertInstanceOf(yield* thrownBy(until(5 as unknown as Promise<void>)), TypeError);
  });
});

Deno.test("K16 until: cancelled, the signal aborts with the Cancelled, a late result is ignored", async () => {
  await simulate(function* ({ loop }) {
    let signal!: AbortSignal;
    const late = Promise.withResolvers<string>();
    const task = loop.createTask(until((own) => {
      signal = own;
      return late.promise;
    }));
    yield* checkpoint();
    assertFalse(signal.aborted);
    task.cancel("why");
    assert(signal.aborted); // at once, in the step of the cancel
    assertEquals((signal.reason as Cancelled).reason, "why");
    yield* task.wait();
    late.resolve("late");
    yield* until(platformTurn());
    assert(task.cancelled);
  });
});

Deno.test("K16 until: a late rejection after a cancel is heard by nobody, and harms nobody", async () => {
  await simulate(function* () {
    const late = Promise.withResolvers<void>();
    assertEquals(yield* moveOnAfter(5, until(late.promise)), undefined);
    late.reject(new Error("late"));
    yield* until(platformTurn());
  });
});

Deno.test("K16 until: a late result does not end the next wait of the same task", async () => {
  await simulate(function* () {
    const first = Promise.withResolvers<string>();
    const second = Promise.withResolvers<string>();
    assertEquals(yield* moveOnAfter(5, until(first.promise)), undefined);
    setImmediate(() => first.resolve("first"));
    setImmediate(() => setImmediate(() => second.resolve("second")));
    assertEquals(yield* until(second.promise), "second");
  });
});

Deno.test("K16 until: with fetch-like code a timeout reaches the other side", async () => {
  await simulate(function* () {
    let aborted = false;
    const fetchLike = (signal: AbortSignal) =>
      new Promise<string>((_, reject) =>
        signal.addEventListener("abort", () => {
          aborted = true;
          reject(signal.reason);
        })
      );
    yield* moveOnAfter(10, until(fetchLike));
    assert(aborted);
  });
});

Deno.test("K16 until: an abort handler may use the loop, for it runs in the middle of a cancel", async () => {
  await simulate(function* ({ loop }) {
    const event = new Event();
    const other = loop.createTask(new Event().wait());
    let born: Task<string> | undefined;
    function* child(): Coroutine<string> {
      return "born in a handler";
    }
    yield* moveOnAfter(
      5,
      until((signal) => {
        signal.addEventListener("abort", () => {
          event.set();
          other.cancel();
          born = loop.createTask(child());
        });
        return new Promise(() => {});
      }),
    );
    yield* failAfter(5, event.wait());
    yield* other.wait();
    assertEquals(yield* born!.join(), "born in a handler");
  });
});

// ---- K17 own ops -----------------------------------------------------------------------------------------------

Deno.test("K17 an op of one's own: typed, cancelled as any other, and built without the kernel", async () => {
  await simulate(function* ({ loop }) {
    const waiting = new Map<string, Task>();
    loop.addOp<[key: string]>("keypress", {
      start: (task, key) => void waiting.set(key, task),
      cancel: (_task, key) => void waiting.delete(key),
    });
    function* keypress(key: string): Coroutine<number> {
      return yield ["keypress", key] satisfies Op;
    }
    const task = loop.createTask(keypress("a"));
    yield* checkpoint();
    assertEquals(task.op, ["keypress", "a"]);
    loop.wake(waiting.get("a")!, 7);
    assertEquals(yield* task.join(), 7);

    assertEquals(yield* moveOnAfter(5, keypress("b")), undefined);
    assertFalse(waiting.has("b"));

    const failing = loop.createTask(thrownBy(keypress("c")));
    yield* checkpoint();
    loop.fail(waiting.get("c")!, new Error("no such key"));
    assertEquals((yield* failing.join()).message, "no such key");
    assertThrows(() => loop.wake(task), Error, "it does not wait for an op");
  });
});

Deno.test("K17 an op that throws when it begins throws at its yield; one half made is refused", async () => {
  await simulate(function* ({ loop }) {
    loop.addOp("broken", {
      start() {
        throw new Error("out of order");
      },
      cancel() {},
    });
    function* broken(): Coroutine<void> {
      yield ["broken"];
    }
    assertEquals((yield* thrownBy(broken())).message, "out of order");
    // @ts-expect-error: cancel is missing
    assertThrows(() => loop.addOp("half", { start() {} }), TypeError, "needs the functions start and cancel");
  });
});

Deno.test("K17 ops belong to the loop they were added to", async () => {
  const { loop } = simulation();
  loop.addOp("mine", { start: (task) => loop.wake(task, "mine"), cancel() {} });
  function* mine(): Coroutine<string> {
    return yield ["mine"];
  }
  assertEquals(await loop.run(mine()), "mine");
  await assertRejects(() => simulation().loop.run(mine()), TypeError, 'Cannot perform op "mine": it is unknown');
});

// ---- Task locals -----------------------------------------------------------------------------------------------

Deno.test("a task local is inherited by children, and not by parents or siblings", async () => {
  await simulate(function* ({ loop }) {
    const user = new TaskLocal("nobody");
    function* child(name: string): Coroutine<string> {
      const before = user.get();
      user.set(name);
      yield* sleep(1);
      const grandchild = loop.createTask((function* () {
        yield* checkpoint();
        return user.get();
      })());
      return `${before} ${user.get()} ${yield* grandchild.join()}`;
    }
    assertEquals(user.get(), "nobody");
    user.set("main");
    const said = yield* all([child("a"), child("b")]);
    assertEquals(said, ["main a a", "main b b"]);
    assertEquals(user.get(), "main");
  });
});

Deno.test("a task local survives every kind of resume", async () => {
  await simulate(function* () {
    const id = new TaskLocal(0);
    const event = new Event();
    const queue = new Queue<number>();
    setImmediate(() => (event.set(), queue.putNowait(1)));
    function* work(n: number): Coroutine<void> {
      id.set(n);
      yield* until(platformTurn());
      assertEquals(id.get(), n);
      yield* event.wait();
      assertEquals(id.get(), n);
      yield* moveOnAfter(1, sleep(100));
      assertEquals(id.get(), n);
      yield* thrownBy(until(Promise.reject(new Error("thrown"))));
      assertEquals(id.get(), n);
      yield* taskGroup(function* (group) {
        const child = group.createTask((function* () {
          return id.get();
        })());
        assertEquals(yield* child.join(), n);
      });
    }
    yield* all([work(1), work(2), work(3)]);
    assertEquals(id.get(), 0);
  });
});

Deno.test("a task local set after a child was made is not the child's; outside of tasks it cannot be set", async () => {
  const name = new TaskLocal<string | undefined>("nobody");
  await simulate(function* ({ loop }) {
    name.set("first");
    const child = loop.createTask((function* () {
      return name.get();
    })());
    name.set("second");
    assertEquals(yield* child.join(), "first");
    name.set(undefined);
    assertEquals(name.get(), undefined);
    let aborted: unknown;
    const never = (signal: AbortSignal) =>
      new Promise(() => signal.addEventListener("abort", () => aborted = name.get()));
    yield* moveOnAfter(1, until(never));
    assertEquals(aborted, "nobody"); // It was the deadline that aborted it, and no task.
  });
  assertEquals(name.get(), "nobody");
  assertThrows(() => name.set("outside"), Error, "no task is running here");
});

Deno.test("a task local in a group follows who created the task, not whose group it is", async () => {
  await simulate(function* () {
    const user = new TaskLocal("nobody");
    function* whoami(): Coroutine<string> {
      return user.get();
    }
    const said = yield* taskGroup(function* (group) {
      user.set("owner");
      const visitor = group.createTask((function* () {
        user.set("visitor");
        return yield* group.createTask(whoami()).join();
      })());
      return [yield* visitor.join(), yield* group.createTask(whoami()).join()];
    });
    assertEquals(said, ["visitor", "owner"]);
  });
});

Deno.test("a task local is inherited by a task of another loop, too", async () => {
  const user = new TaskLocal("nobody");
  const other = simulation().loop;
  await simulate(function* () {
    user.set("main");
    const child = other.createTask((function* () {
      return user.get();
    })());
    yield* until(other.runForever());
    assertEquals(child.result(), "main");
    function* main(): Coroutine<string> {
      return user.get();
    }
    assertEquals(yield* until(other.run(main())), "main");
  });
});

// ---- Where one is ----------------------------------------------------------------------------------------------

Deno.test("currentTask and runningLoop tell where one is, and throw where no task runs", async () => {
  const { loop } = simulation();
  await loop.run((function* () {
    assertStrictEquals(runningLoop(), loop);
    assertEquals(currentTask().name, "main");
    const fromCallback = yield* until(
      platformTurn().then(() => {
        try {
          return currentTask();
        } catch (error) {
          return (error as Error).message;
        }
      }),
    );
    assertEquals(fromCallback, "Cannot tell the current task: no task is running here");
    assertEquals(currentTask().name, "main");
  })());
  assertThrows(() => runningLoop(), Error, "this code was not called by a task");
});

Deno.test("K8 Promise.all over a task, written before the run, is there to take its error", async () => {
  const errors: unknown[] = [];
  const loop = new Loop({ onError: (error) => errors.push(error) });
  function* failing(): Coroutine {
    throw new Error("at once");
  }
  const all = Promise.all([loop.createTask(failing())]);
  const run = loop.runForever();
  await assertRejects(() => all, Error, "at once");
  await run;
  assertEquals(errors, []);
});

Deno.test(
  "what arrives is of the type that the platform's functions take, and an address of its listener's kind",
  needs({ net: true }),
  async () => {
    const loop = new Loop();
    await loop.run((function* () {
      using listener = listen({ hostname: "127.0.0.1", port: 0 });
      const dialling = loop.createTask(connect({ hostname: "127.0.0.1", port: listener.addr.port }));
      const [server, addr] = yield* loop.sockAccept(listener);
      using client = yield* dialling.join();
      assertEquals((client.localAddr as Deno.NetAddr).port, addr.port);
      using stream = new Stream(server);
      yield* loop.sockSendall(client, new TextEncoder().encode("hello"));
      assertEquals(yield* until(new Blob([yield* stream.readExactly(4)]).text()), "hell");
      assertEquals(yield* until(new Response(yield* stream.read()).text()), "o");
      yield* loop.sockSendall(server, new Uint8Array(3));
      let data = new Uint8Array(0);
      data = yield* loop.sockRecv(client, 10);
      assertEquals((yield* until(crypto.subtle.digest("SHA-1", data))).byteLength, 20);
    })());
  },
);
