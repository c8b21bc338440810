// deno-lint-ignore-file no-unsafe-finally -- what a cleanup throws is what is tested here
/**
 * Deadlines and groups: the rules T and G, and what trio's users know of scopes and nurseries.
 */
import {
  assert,
  assertEquals,
  assertFalse,
  assertInstanceOf,
  assertLess,
  assertMatch,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import {
  all,
  call,
  Cancelled,
  type CancelScope,
  cancelScope,
  checkpoint,
  type Coroutine,
  currentTask,
  Event,
  failAfter,
  type Loop,
  moveOnAfter,
  Queue,
  race,
  shield,
  sleep,
  type Task,
  TaskError,
  type TaskGroup,
  taskGroup,
  TimeoutError,
  until,
} from "../mod.ts";
import { platformTurn, simulate, type Simulation, simulation, thrownBy } from "./world.ts";

/** Sleeps, then returns `value`. */
function* after<T>(ms: number, value: T): Coroutine<T> {
  yield* sleep(ms);
  return value;
}

/** Sleeps, then throws `error`. */
function* failing(ms: number, error: unknown): Coroutine<never> {
  yield* sleep(ms);
  throw error;
}

/** Sleeps for very long, and says so in `log` when it has cleaned up, which takes it `ms`. */
function* tidy(log: string[], name: string, ms = 0): Coroutine<void> {
  try {
    yield* sleep(1e6);
  } finally {
    if (ms) yield* shield(sleep(ms));
    log.push(name);
  }
}

function timers(loop: Loop): number {
  return loop._timers.length;
}

// ---- T1 --------------------------------------------------------------------------------------------------------

Deno.test("T1 failAfter throws TimeoutError when the time is up, at that very time", async () => {
  await simulate(function* ({ loop }) {
    const error = yield* thrownBy(failAfter(100, sleep(1000)));
    assertInstanceOf(error, TimeoutError);
    assertEquals(error.message, "Timed out after 100 ms");
    assertEquals(loop.time(), 100);
  });
});

Deno.test("T1 moveOnAfter returns undefined when the time is up", async () => {
  await simulate(function* ({ loop }) {
    assertEquals(yield* moveOnAfter(100, after(1000, "late")), undefined);
    assertEquals(loop.time(), 100);
  });
});

Deno.test("T1 a coroutine that ends in time keeps its value, its error, and leaves no timer", async () => {
  await simulate(function* ({ loop }) {
    const oops = new Error("oops");
    assertEquals(yield* failAfter(100, after(10, 1)), 1);
    assertEquals(yield* moveOnAfter(100, after(10, 2)), 2);
    assertStrictEquals(yield* thrownBy(failAfter(100, failing(10, oops))), oops);
    assertEquals(timers(loop), 0);
    yield* sleep(1000); // nothing fires later
    assertEquals(loop.time(), 1030);
  });
});

Deno.test("T1 the scope that expired is the one that throws, of three", async () => {
  await simulate(function* () {
    const said: string[] = [];
    const error = yield* thrownBy(failAfter(
      300,
      (function* () {
        try {
          yield* failAfter(200, moveOnAfter(500, sleep(1000)));
        } catch (error) {
          said.push((error as Error).message);
          throw error;
        }
      })(),
    ));
    assertEquals(said, ["Timed out after 200 ms"]);
    assertEquals(error.message, "Timed out after 200 ms");
  });
});

Deno.test("T1 a TimeoutError that the body throws itself is no timeout of the block", async () => {
  await simulate(function* () {
    const own = new TimeoutError("my own");
    assertStrictEquals(yield* thrownBy(moveOnAfter(100, failing(1, own))), own);
  });
});

Deno.test("T1 durations that are none throw where they are written", () => {
  for (const ms of [-1, NaN, "5" as unknown as number]) {
    assertThrows(() => failAfter(ms, sleep(1)), RangeError);
    assertThrows(() => moveOnAfter(ms, sleep(1)), RangeError);
    assertThrows(() => shield(sleep(1), { timeout: ms }), RangeError);
    assertThrows(() => cancelScope(() => sleep(1), { timeout: ms }), RangeError);
  }
  assertThrows(() => cancelScope(() => sleep(1), { deadline: NaN }), RangeError);
  for (const forgotten of [failAfter, moveOnAfter]) {
    assertThrows(() => forgotten(undefined as unknown as number, sleep(1)), RangeError);
  }
});

Deno.test("T1 no time limit is a limit too: Infinity never fires", async () => {
  await simulate(function* ({ loop }) {
    assertEquals(yield* failAfter(Infinity, after(1e12, "patient")), "patient");
    assertEquals(timers(loop), 0);
  });
});

// ---- T2 --------------------------------------------------------------------------------------------------------

Deno.test("T2 the nearer deadline rules, and the outer block goes on", async () => {
  await simulate(function* ({ loop }) {
    const value = yield* failAfter(
      200,
      (function* () {
        assertEquals(yield* moveOnAfter(100, sleep(1000)), undefined);
        yield* sleep(50);
        return "outer goes on";
      })(),
    );
    assertEquals(value, "outer goes on");
    assertEquals(loop.time(), 150);
  });
});

Deno.test("T2 the outer deadline first: the inner block does not claim it", async () => {
  await simulate(function* ({ loop }) {
    let inner!: CancelScope;
    const error = yield* thrownBy(failAfter(
      100,
      cancelScope(function* (scope) {
        inner = scope;
        yield* sleep(1000);
      }, { timeout: 200 }),
    ));
    assertInstanceOf(error, TimeoutError);
    assertFalse(inner.cancelledCaught);
    assertFalse(inner.cancelCalled);
    assertEquals(loop.time(), 100);
  });
});

for (const innerFirst of [false, true]) {
  Deno.test(`T2 both at once: the outer, ${innerFirst ? "though the inner was set first" : "as they come"}`, async () => {
    await simulate(function* () {
      const scopes: CancelScope[] = [];
      const value = yield* cancelScope(function* (outer) {
        return yield* cancelScope(function* (inner) {
          scopes.push(outer, inner);
          inner.deadline = 100;
          if (innerFirst) outer.deadline = 100;
          yield* sleep(1000);
        });
      }, { deadline: innerFirst ? Infinity : 100 });
      assertEquals(value, undefined);
      assertEquals(scopes.map((scope) => scope.cancelledCaught), [true, false]);
    });
  });
}

Deno.test("T2 both passed at once: what an until tells its promise is the outer's, and passes the inner by", async () => {
  await simulate(function* ({ loop, world }) {
    const scopes: CancelScope[] = [];
    const task = loop.createTask(cancelScope((outer) =>
      cancelScope(function* (inner) {
        scopes.push(outer, inner);
        let told!: AbortSignal;
        yield* thrownBy(until((signal) => new Promise(() => told = signal)));
        throw told.reason;
      }, { timeout: 10 }), { timeout: 20 }));
    yield* checkpoint();
    world.hold(30);
    yield* task.join();
    assertEquals(scopes.map((scope) => scope.cancelledCaught), [true, false]);
  });
});

Deno.test("T2 deadlines of many nested blocks, each nearer than the one around it", async () => {
  await simulate(function* ({ loop }) {
    const ended: number[] = [];
    function* nest(depth: number): Coroutine<void> {
      if (depth === 0) return yield* sleep(1e6);
      yield* moveOnAfter(depth * 10, nest(depth - 1));
      ended.push(loop.time());
      yield* sleep(1e6);
    }
    yield* moveOnAfter(1000, nest(20));
    // Each block that times out leaves its caller to sleep until that one's own deadline.
    assertEquals(ended, Array.from({ length: 20 }, (_, i) => (i + 1) * 10));
  });
});

// ---- T3 --------------------------------------------------------------------------------------------------------

Deno.test("T3 a deadline in the past throws at the first op, not on entry", async () => {
  await simulate(function* ({ loop }) {
    const said: string[] = [];
    for (const options of [{ timeout: 0 }, { deadline: -5 }]) {
      const value = yield* cancelScope(function* () {
        said.push("entered");
        yield* checkpoint();
        said.push("not reached");
      }, options);
      assertEquals(value, undefined);
    }
    assertEquals(said, ["entered", "entered"]);
    assertEquals(
      yield* failAfter(
        0,
        (function* () {
          return 1;
        })(),
      ),
      1,
    ); // no op, nothing to throw at
    assertEquals(loop.time(), 0);
  });
});

Deno.test("T3 a timeout is relative to when the block is entered, not to when it was written", async () => {
  await simulate(function* ({ loop }) {
    const block = moveOnAfter(100, sleep(1000));
    yield* sleep(500);
    yield* block;
    assertEquals(loop.time(), 600);
  });
});

Deno.test("T3 a deadline can be moved either way from inside, and from outside", async () => {
  await simulate(function* ({ loop }) {
    const ends: number[] = [];
    function* block(move: (scope: CancelScope) => void): Coroutine<void> {
      const start = loop.time();
      yield* cancelScope(function* (scope) {
        yield* sleep(10);
        move(scope);
        yield* sleep(1000);
      }, { timeout: 100 });
      ends.push(loop.time() - start);
    }
    yield* block((scope) => scope.deadline += 50);
    yield* block((scope) => scope.deadline -= 50);
    yield* block((scope) => scope.deadline = Infinity);
    yield* block((scope) => scope.deadline = 0);
    assertEquals(ends, [150, 50, 1010, 10]);
    assertEquals(timers(loop), 0);
  });
  await simulate(function* ({ loop }) {
    let scope!: CancelScope;
    const task = loop.createTask(cancelScope(function* (own) {
      scope = own;
      yield* sleep(1000);
    }));
    yield* sleep(5);
    scope.deadline = 7;
    yield* task.join();
    assertEquals(loop.time(), 7);
    assert(scope.cancelledCaught);
  });
});

Deno.test("T3 a deadline that the cancellation of an outer block moves holds, though both had passed", async () => {
  await simulate(function* ({ loop, world }) {
    yield* cancelScope(function* (outer) {
      yield* cancelScope(function* (inner) {
        const extend = () => {
          inner.deadline = 100;
          inner.shield = true;
        };
        const aborted = (signal: AbortSignal) => new Promise(() => signal.addEventListener("abort", extend));
        loop.createTask(until(aborted), { scope: outer });
        yield* checkpoint();
        world.hold(50);
        yield* checkpoint();
        assertEquals([outer.cancelCalled, inner.cancelCalled], [true, false]);
        yield* sleep(30);
      }, { deadline: 10 });
    }, { deadline: 20 });
    assertEquals(loop.time(), 80);
  });
});

Deno.test("T3 a deadline moved after the scope was cancelled changes nothing", async () => {
  await simulate(function* ({ loop }) {
    const value = yield* cancelScope(function* (scope) {
      scope.cancel("enough");
      scope.deadline = Infinity;
      yield* sleep(10);
      return "survived";
    });
    assertEquals(value, undefined);
    assertEquals([loop.time(), timers(loop)], [0, 0]);
  });
});

Deno.test("T3 of timeout and deadline the nearer counts", async () => {
  await simulate(function* ({ loop }) {
    yield* cancelScope(() => sleep(1000), { timeout: 50, deadline: 20 });
    assertEquals(loop.time(), 20);
    yield* cancelScope(() => sleep(1000), { timeout: 50, deadline: 500 });
    assertEquals(loop.time(), 70);
  });
});

Deno.test("T3 cancelCalled tells that the deadline has passed to who computes without an op", async () => {
  await simulate(function* ({ world }) {
    let rounds = 0;
    let around!: CancelScope;
    const result = yield* cancelScope(function* (outer) {
      around = outer;
      return yield* cancelScope(function* (scope) {
        for (; !scope.cancelCalled; rounds++) world.hold(10);
        assertEquals([scope.cancelledCaught, outer.cancelCalled], [false, true]);
        return "so far";
      }, { timeout: 35 });
    }, { timeout: 35 });
    assertEquals([result, rounds], ["so far", 4]); // T4: there was no op to come.
    assertEquals(around.cancelledCaught, false);
    world.hold(100);
    const left = yield* cancelScope(function* (scope) {
      return scope;
    }, { timeout: 10 });
    world.hold(100);
    assertEquals(left?.cancelCalled, false); // The block was over by then.
  });
});

// ---- T4 --------------------------------------------------------------------------------------------------------

Deno.test("T4 a block that finished, though late, is not failed", async () => {
  await simulate(function* ({ world, loop }) {
    const late = function* () {
      yield* sleep(1);
      world.hold(1000); // computes for a second
      return "done";
    };
    assertEquals(yield* failAfter(100, late()), "done");
    assertEquals(yield* moveOnAfter(100, late()), "done");
    assertEquals(timers(loop), 0);
  });
});

Deno.test("T4 a block that was shielded when its time was up, and finished, is not failed", async () => {
  await simulate(function* ({ loop }) {
    assertEquals(yield* failAfter(10, shield(after(20, "done"))), "done");
    assertEquals(yield* moveOnAfter(10, shield(after(20, "done"))), "done");
    assertEquals([loop.time(), timers(loop)], [40, 0]);
    yield* checkpoint(); // nothing of it comes later
  });
});

Deno.test("T4 the deadline of a block that was left is over, also for a task that outlives the block", async () => {
  await simulate(function* ({ loop, world }) {
    let left!: CancelScope;
    let task!: Task<string>;
    yield* cancelScope(function* (scope) {
      left = scope;
      task = loop.createTask(
        (function* () {
          yield* sleep(20);
          world.hold(10);
          yield* checkpoint();
          return "done";
        })(),
        { scope },
      );
      yield* checkpoint();
    }, { timeout: 10 });
    loop.createTask(sleep(25)); // is due at that checkpoint, so that deadlines are looked at there
    assertEquals([yield* task.join(), left.cancelCalled], ["done", false]);
  });
});

Deno.test("T4 a deadline that passed meanwhile fires at the next op, in a scope within that has none, too", async () => {
  await simulate(function* ({ world }) {
    let reached = false;
    yield* moveOnAfter(
      500,
      cancelScope(function* () {
        yield* sleep(1);
        world.hold(1000);
        yield* checkpoint();
        reached = true;
      }),
    );
    assertFalse(reached);
  });
});

Deno.test("T4 an outer deadline that passed meanwhile fires at the next op", async () => {
  await simulate(function* ({ world }) {
    const said: string[] = [];
    const value = yield* moveOnAfter(
      500,
      (function* () {
        yield* failAfter(
          100,
          (function* () {
            yield* sleep(1);
            world.hold(1000);
          })(),
        );
        said.push("the inner block had ended");
        yield* checkpoint();
        said.push("not reached");
      })(),
    );
    assertEquals(value, undefined);
    assertEquals(said, ["the inner block had ended"]);
  });
});

Deno.test("T4 an op that completed before the deadline, in the same turn, delivers its result", async () => {
  await simulate(function* () {
    const event = new Event();
    const value = yield* taskGroup(function* (group) {
      const waiter = group.createTask(moveOnAfter(
        10,
        (function* () {
          yield* event.wait();
          return "got it";
        })(),
      ));
      group.createTask((function* () {
        yield* sleep(9);
        event.set();
      })());
      return yield* waiter.join();
    });
    assertEquals(value, "got it");
  });
});

Deno.test("T4 a deadline that a block around was given from inside fires at the next op of the inner one", async () => {
  await simulate(function* ({ world }) {
    yield* cancelScope(function* (outer) {
      yield* cancelScope(function* () {
        outer.deadline = 5;
        world.hold(10);
        yield* checkpoint();
        throw new Error("The checkpoint did not look");
      });
    });
  });
});

// ---- T5 --------------------------------------------------------------------------------------------------------

const FAMILIES: Record<string, (members: Coroutine<unknown>[]) => Coroutine<unknown>> = {
  all: (members) => all(members),
  race: (members) => race(members),
  taskGroup: (members) =>
    taskGroup(function* (group) {
      for (const member of members) group.createTask(member);
    }),
};

for (const [name, family] of Object.entries(FAMILIES)) {
  Deno.test(`T5 ${name} inside a timeout is cancelled and awaited before the TimeoutError leaves`, async () => {
    await simulate(function* ({ loop }) {
      const log: string[] = [];
      const error = yield* thrownBy(failAfter(100, family([tidy(log, "quick"), tidy(log, "slow", 70)])));
      assertInstanceOf(error, TimeoutError);
      assertEquals(log, ["quick", "slow"]);
      assertEquals(loop.time(), 170);
      assertEquals([...loop.tasks].length, 1);
    });
  });
}

Deno.test("T5 an error of a cleanup after the timeout is not lost behind it", async () => {
  await simulate(function* () {
    const oops = new Error("oops");
    const error = yield* thrownBy(failAfter(
      100,
      taskGroup(function* (group) {
        group.createTask((function* () {
          try {
            yield* sleep(1000);
          } finally {
            throw oops;
          }
        })());
      }),
    ));
    assertStrictEquals(error, oops);
    assertInstanceOf(error.cause, Cancelled);
  });
});

Deno.test("T5 a timeout inside a child ends that child's block and no other", async () => {
  await simulate(function* () {
    const results = yield* all([moveOnAfter(10, after(20, "a")), after(20, "b"), moveOnAfter(30, after(20, "c"))]);
    assertEquals(results, [undefined, "b", "c"]);
  });
});

// ---- G1 --------------------------------------------------------------------------------------------------------

Deno.test("G1 the block ends when every child has, and returns what its body did", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    const value = yield* taskGroup(function* (group) {
      for (const ms of [30, 10, 20]) {
        group.createTask((function* () {
          yield* sleep(ms);
          log.push(`child ${ms}`);
        })());
      }
      assertEquals(group.size, 3);
      log.push("body");
      return "value";
    });
    assertEquals(log, ["body", "child 10", "child 20", "child 30"]);
    assertEquals([value, loop.time()], ["value", 30]);
  });
});

Deno.test("G1 a return in the middle waits too, and an empty group ends at once", async () => {
  await simulate(function* ({ loop }) {
    function* early(): Coroutine<string> {
      return yield* taskGroup(function* (group) {
        group.createTask(sleep(40));
        for (;;) return "early";
      });
    }
    assertEquals(yield* early(), "early");
    assertEquals(loop.time(), 40);
    assertEquals(yield* taskGroup(function* () {}), undefined);
    assertEquals(loop.time(), 40);
  });
});

Deno.test("G1 children may spawn siblings while the group drains, also while it is cancelled", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    function* spawner(group: TaskGroup, depth: number): Coroutine<void> {
      yield* sleep(10);
      log.push(`depth ${depth}`);
      if (depth > 0) group.createTask(spawner(group, depth - 1));
    }
    yield* taskGroup(function* (group) {
      group.createTask(spawner(group, 3));
    });
    assertEquals(log, ["depth 3", "depth 2", "depth 1", "depth 0"]);
    assertEquals(loop.time(), 40);

    let born = "not at all";
    yield* taskGroup(function* (group) {
      group.createTask((function* () {
        try {
          yield* sleep(1000);
        } finally {
          group.createTask((function* () {
            born = "alive";
            yield* checkpoint();
            born = "out of reach";
          })());
        }
      })());
      yield* sleep(1);
      group.cancel();
    });
    assertEquals(born, "alive"); // It started, and was cancelled at its first op.
  });
});

Deno.test("G1 the body may join its children, and a group may stand in a group", async () => {
  await simulate(function* () {
    const value = yield* taskGroup(function* (outer) {
      const left = outer.createTask(after(10, 1));
      const inner = yield* taskGroup(function* (group) {
        const right = group.createTask(after(20, 2));
        return (yield* right.join()) + (yield* left.join());
      });
      return inner * 10;
    });
    assertEquals(value, 30);
  });
});

Deno.test("G1 a child that ends while the group is being closed is not waited for twice", async () => {
  await simulate(function* ({ loop }) {
    for (let i = 0; i < 10; i++) {
      yield* taskGroup(function* (group) {
        const child = group.createTask(checkpoint());
        for (let k = 0; k < i % 4; k++) yield* checkpoint();
        if (i > 5) yield* child.wait();
      });
    }
    assertEquals([...loop.tasks].length, 1);
  });
});

// ---- G2, G3 ----------------------------------------------------------------------------------------------------

Deno.test("G2 the first child error cancels body and siblings, they are awaited, that error is thrown", async () => {
  await simulate(function* ({ loop }) {
    const oops = new Error("oops");
    const log: string[] = [];
    const error = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(tidy(log, "sibling", 30));
      group.createTask(failing(10, oops));
      yield* tidy(log, "body");
    }));
    assertStrictEquals(error, oops);
    assertEquals(log, ["body", "sibling"]);
    assertEquals(loop.time(), 40);
  });
});

Deno.test("G2 siblings are told why: the reason of their Cancelled is the error", async () => {
  await simulate(function* () {
    const oops = new Error("oops");
    let reason: unknown;
    yield* thrownBy(taskGroup(function* (group) {
      group.createTask(failing(10, oops));
      try {
        yield* sleep(1000);
      } catch (error) {
        reason = (error as Cancelled).reason;
        throw error;
      }
    }));
    assertStrictEquals(reason, oops);
  });
});

Deno.test("G2 more than one real error: AggregateError with all of them, in the order they came", async () => {
  await simulate(function* () {
    const errors = [1, 2, 3].map((n) => new Error(`error ${n}`));
    const error = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(failing(30, errors[2])); // cancelled, fails all the same
      for (const i of [2, 1]) {
        group.createTask((function* () {
          try {
            yield* sleep(1000);
          } finally {
            yield* shield(sleep(i * 10));
            throw errors[i];
          }
        })());
      }
      group.createTask(failing(10, errors[0]));
    }));
    assertInstanceOf(error, AggregateError);
    assertEquals([error.message, error.errors], ["Several tasks failed", errors]);
    for (const [i, inner] of error.errors.entries()) assertStrictEquals(inner, errors[i]);
  });
});

Deno.test("G2 two children that fail in one turn are both reported", async () => {
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(failing(10, "a"));
      group.createTask(failing(10, "b"));
    }));
    assertEquals(error.errors, ["a", "b"]);
  });
});

Deno.test("G2 nested groups: an error goes up through each, once", async () => {
  await simulate(function* () {
    const oops = new Error("oops");
    const log: string[] = [];
    const error = yield* thrownBy(taskGroup(function* (outer) {
      outer.createTask(tidy(log, "uncle"));
      yield* taskGroup(function* (inner) {
        inner.createTask(tidy(log, "sibling"));
        inner.createTask(failing(5, oops));
      });
      log.push("not reached");
    }));
    assertStrictEquals(error, oops);
    assertEquals(log, ["sibling", "uncle"]);
  });
});

Deno.test("G2 a body that joins the failing child gets the error, and it is thrown once", async () => {
  await simulate(function* () {
    const oops = new Error("oops");
    assertStrictEquals(
      yield* thrownBy(taskGroup(function* (group) {
        yield* group.createTask(failing(5, oops)).join();
      })),
      oops,
    );
  });
});

Deno.test("G2 a body that joins the failing child in a try is cancelled all the same", async () => {
  await simulate(function* () {
    const log: string[] = [];
    const error = yield* thrownBy(taskGroup(function* (group) {
      const child = group.createTask(failing(5, "oops"));
      try {
        yield* child.join();
      } catch {
        log.push("caught");
      }
      yield* checkpoint();
      log.push("not reached");
    }));
    assertEquals([error, log], ["oops", ["caught"]]);
  });
});

Deno.test("G2 a child may fail with undefined, and it is still a failure", async () => {
  await simulate(function* () {
    assertInstanceOf(
      yield* thrownBy(taskGroup(function* (group) {
        group.createTask(failing(5, undefined));
      })),
      TaskError,
    );
  });
});

Deno.test("G3 a body error: the children are cancelled and awaited, and it is thrown as it is", async () => {
  await simulate(function* ({ loop }) {
    const oops = new Error("oops");
    const log: string[] = [];
    const error = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(tidy(log, "child", 30));
      yield* sleep(10);
      throw oops;
    }));
    assertStrictEquals(error, oops);
    assertEquals([log, loop.time()], [["child"], 40]);
  });
});

Deno.test("G3 the body error comes first in the aggregate, and no Cancelled of the group is in it", async () => {
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(tidy([], "quiet"));
      group.createTask(failing(10, "child"));
      try {
        yield* sleep(1000);
      } finally {
        throw "body";
      }
    }));
    assertInstanceOf(error, AggregateError);
    assertEquals(error.errors, ["body", "child"]);
  });
});

Deno.test("G3 an error thrown while a cancellation from outside goes on is not replaced by it", async () => {
  await simulate(function* () {
    const value = yield* cancelScope(function* (scope) {
      const error = yield* thrownBy(taskGroup(function* (group) {
        group.createTask((function* () {
          try {
            yield* sleep(1000);
          } finally {
            throw "cleanup";
          }
        })());
        yield* sleep(1);
        scope.cancel();
        yield* sleep(1000);
      }));
      assertEquals(error, "cleanup");
      yield* checkpoint(); // the cancellation is still there
      return "not reached";
    });
    assertEquals(value, undefined);
  });
});

// ---- G4 --------------------------------------------------------------------------------------------------------

Deno.test("G4 a child that was cancelled by hand ends quietly", async () => {
  await simulate(function* () {
    const log: string[] = [];
    const value = yield* taskGroup(function* (group) {
      const child = group.createTask(tidy(log, "child"));
      const other = group.createTask(after(20, "other"));
      yield* sleep(5);
      child.cancel();
      return yield* other.join();
    });
    assertEquals([value, log], ["other", ["child"]]);
  });
});

Deno.test("G4 a body that joins a child cancelled by hand gets TaskError, not Cancelled", async () => {
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      const child = group.createTask(sleep(1000));
      yield* checkpoint();
      child.cancel("by hand");
      yield* child.join();
    }));
    assertInstanceOf(error, TaskError);
    assertEquals((error.cause as Cancelled).reason, "by hand");
  });
});

Deno.test("G4 group.cancel() ends all and the block returns normally, undefined if the body had not", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    const value = yield* taskGroup(function* (group) {
      group.createTask(tidy(log, "child", 20));
      yield* sleep(10);
      group.cancel();
      yield* checkpoint();
      return "not reached";
    });
    assertEquals([value, log, loop.time()], [undefined, ["child"], 30]);
    const returned = yield* taskGroup(function* (group) {
      group.createTask(tidy(log, "second"));
      group.cancel();
      return "returned";
    });
    assertEquals(returned, "returned");
    yield* checkpoint(); // nothing is left of it
  });
});

Deno.test("G4 a child may cancel its group, and a callback from outside the loop may", async () => {
  await simulate(function* () {
    assertEquals(
      yield* taskGroup(function* (group) {
        group.createTask((function* () {
          yield* sleep(1);
          group.cancel();
          yield* sleep(1000);
        })());
        yield* sleep(1000);
        return "not reached";
      }),
      undefined,
    );
    assertEquals(
      yield* taskGroup(function* (group) {
        setImmediate(() => group.cancel());
        yield* new Event().wait();
        return "not reached";
      }),
      undefined,
    );
  });
});

Deno.test("G4 a cancellation from outside passes through, after all have ended", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    const task = loop.createTask(taskGroup(function* (group) {
      group.createTask(tidy(log, "child", 20));
      yield* tidy(log, "body");
    }));
    yield* sleep(10);
    task.cancel("from outside");
    yield* task.wait();
    assert(task.cancelled);
    assertEquals([log, loop.time()], [["body", "child"], 30]);
  });
});

Deno.test("G4 from outside, while the body has returned and the children drain", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    const task = loop.createTask(taskGroup(function* (group) {
      group.createTask(tidy(log, "child"));
      return "returned";
    }));
    yield* sleep(10);
    task.cancel();
    yield* task.wait();
    assert(task.cancelled);
    assertEquals(log, ["child"]);
  });
});

Deno.test("G4 T1 from outside, while the body is in a shield: the group passes it on, if it has ended a task", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    function* group(ms: number): Coroutine<string> {
      return yield* taskGroup(function* (group) {
        group.createTask(tidy(log, "child"));
        group.createTask(sleep(ms));
        yield* shield(sleep(20));
        return "returned";
      });
    }
    assertEquals(yield* moveOnAfter(10, group(1)), undefined);
    assertInstanceOf(yield* thrownBy(failAfter(10, group(1))), TimeoutError);
    assertEquals([log, loop.time()], [["child", "child"], 40]);
    function* undisturbed(): Coroutine<string> {
      return yield* taskGroup(function* (group) {
        group.createTask(sleep(5));
        yield* shield(sleep(20));
        return "returned";
      });
    }
    assertEquals(yield* moveOnAfter(10, undisturbed()), "returned");
  });
});

Deno.test("G4 cancelled by itself and from outside at once: the outside rules", async () => {
  await simulate(function* () {
    let outside!: CancelScope;
    const log: string[] = [];
    const value = yield* cancelScope(function* (scope) {
      outside = scope;
      yield* taskGroup(function* (group) {
        yield* sleep(1);
        group.cancel();
        scope.cancel();
        yield* checkpoint();
      });
      log.push("the group returned");
    });
    assertEquals([value, log], [undefined, []]);
    assert(outside.cancelledCaught);
  });
});

// ---- G5 --------------------------------------------------------------------------------------------------------

Deno.test("G5 createTask and start on a closed group throw, and the coroutine is not touched", async () => {
  await simulate(function* () {
    let late!: TaskGroup;
    yield* taskGroup(function* (group) {
      late = group;
    });
    const coro = sleep(1);
    assertThrows(() => late.createTask(coro), Error, "Cannot create a task in this group: its block has ended");
    const error = yield* thrownBy(late.start(() => sleep(1)));
    assertEquals(error.message, "Cannot create a task in this group: its block has ended");
    yield* coro;
  });
});

Deno.test("N15 a promise that rejects before anybody waits for it is heard, though its wait was refused or has not begun", async () => {
  const wrong = new Error("unheard");
  const rejecting = () => until(Promise.reject(wrong));
  await simulate(function* ({ loop }) {
    let group!: TaskGroup;
    const scope = yield* cancelScope(function* (scope) {
      yield* taskGroup(function* (own) {
        group = own;
        assertThrows(() => own.createTask(rejecting(), { scope } as never), TypeError, "it lives in the group's");
      });
      return scope;
    });
    assertThrows(() => failAfter(-1, rejecting()), RangeError);
    assertThrows(() => taskGroup(rejecting() as any), TypeError);
    assertThrows(() => cancelScope(rejecting() as any), TypeError);
    assertThrows(() => moveOnAfter(NaN, rejecting()), RangeError);
    assertThrows(() => group.createTask(rejecting()), Error, "its block has ended");
    assertThrows(() => loop.createTask(rejecting(), { scope: scope! }), Error, "its block has ended");
    for (const run of [all, race] as ((coros: any) => Coroutine<unknown>)[]) {
      assertInstanceOf(yield* thrownBy(run(rejecting())), TypeError);
      assertInstanceOf(yield* thrownBy(run([[rejecting()]])), TypeError);
    }
    const late: ((coro: Coroutine<unknown>) => Coroutine<unknown>)[] = [
      (coro) => all([coro, sleep(1)]),
      (coro) => race([coro, sleep(1)]),
      (coro) => failAfter(1, coro),
      (coro) => moveOnAfter(1, coro),
      shield,
    ];
    for (const block of late) {
      const coro = block(rejecting());
      yield* until(platformTurn()); // Deno looks for what nobody has heard.
      assertEquals(yield* thrownBy(coro), wrong);
    }
  });
});

Deno.test("G5 start given what is not a function says so, and one on a closed group calls nothing", async () => {
  await simulate(function* () {
    let calls = 0;
    let late!: TaskGroup;
    yield* taskGroup(function* (group) {
      late = group;
      const { message } = yield* thrownBy(group.start(sleep(1) as never));
      assert(message.includes("group.start takes a function"), message);
    });
    yield* thrownBy(late.start(() => (calls++, sleep(1))));
    assertEquals(calls, 0);
  });
});

Deno.test("G5 what is not a coroutine is refused, and the group goes on", async () => {
  await simulate(function* () {
    yield* taskGroup(function* (group) {
      assertThrows(() => group.createTask(sleep as unknown as Coroutine), TypeError, "call it");
      assertEquals(group.size, 0);
      const task = group.createTask(sleep(1), { name: "named" });
      assertEquals(task.name, "named");
      yield* task.join();
    });
  });
});

Deno.test("G5 a block given what is not a coroutine says what to give it", async () => {
  const promise: any = Promise.reject(new Error("unheard")); // Nobody hears of it, and it must not end the program.
  const blocks: [block: () => Coroutine<any>, message: string][] = [
    [() => failAfter(1, after as any), "Cannot run a function: call it, as in after()"],
    [() => moveOnAfter(1, promise), "Cannot run a promise: wrap it, as in until(promise)"],
    [() => shield(undefined as any), "Cannot run undefined: it takes the generator that a function* returns"],
    [() => cancelScope(() => 5 as any), "Cannot run 5: it takes the generator that a function* returns"],
    [() => taskGroup(() => promise), "Cannot run a promise: wrap it, as in until(promise)"],
    [() => all(sleep(1) as any), "Cannot run all: give it an array, as in all([f(), g()])"],
    [() => race(sleep(1) as any), "Cannot run race: give it an array, as in race([f(), g()])"],
  ];
  await simulate(function* () {
    for (const [block, message] of blocks) {
      const error = yield* thrownBy(block());
      assertInstanceOf(error, TypeError);
      assertEquals(error.message, message);
    }
  });
});

Deno.test("G5 a group does not grow with finished members: 10^6 spawned and joined", async () => {
  const { loop, errors } = simulation({ trace: undefined });
  function* one(): Coroutine<number> {
    return 1;
  }
  const heap: number[] = [];
  const sum = await loop.run(taskGroup(function* (group) {
    let sum = 0;
    for (let i = 0; i < 1_000_000; i++) {
      if (i % 250_000 === 0) heap.push(Deno.memoryUsage().heapUsed);
      sum += yield* group.createTask(one()).join();
    }
    assertEquals(group.size, 0);
    return sum;
  }));
  assertEquals(sum, 1_000_000);
  assertEquals(errors, []);
  // A hundred bytes kept for each would be 75 MB.
  assertLess(Deno.memoryUsage().heapUsed - heap[1], 40e6);
});

Deno.test("G5 a group keeps no finished member and no scope of one", async () => {
  await simulate(function* ({ loop }) {
    yield* taskGroup(function* (group) {
      const root = [...loop.tasks].length;
      for (let i = 0; i < 100_000; i++) group.createTask(checkpoint());
      assertEquals(group.size, 100_000);
      yield* sleep(1);
      assertEquals(group.size, 0);
      assertEquals([...loop.tasks].length, root);
      let scopes = 0;
      for (const _ of loop.currentTask!._scope._walk()) scopes++;
      assertEquals(scopes, 1);
    });
  });
});

Deno.test("G1 a task of a group lives in no other scope: to name one is refused", async () => {
  await simulate(function* () {
    yield* taskGroup(function* (group) {
      yield* cancelScope(function* (scope) {
        const options = { scope } as never;
        assertThrows(() => group.createTask(sleep(1), options), TypeError, "Cannot create a task in this group in");
        assertInstanceOf(yield* thrownBy(group.start(() => sleep(1), options)), TypeError);
      });
      assertEquals(group.size, 0);
    });
  });
});

Deno.test("G5 a block whose body gives text says what to give it", async () => {
  await assertRejects(() => simulate(() => taskGroup(() => "text" as any)), TypeError, "Cannot run");
});

// ---- G6 --------------------------------------------------------------------------------------------------------

Deno.test("G6 all: results in the order given, whatever order they came in", async () => {
  await simulate(function* ({ loop }) {
    assertEquals(yield* all([after(30, "a"), after(10, "b"), after(20, 3)]), ["a", "b", 3]);
    assertEquals(loop.time(), 30);
    assertEquals(yield* all([]), []);
    const other = loop.createTask(checkpoint());
    for (let n = 0; n < 3; n++) yield* all([]);
    assert(other.done);
  });
});

Deno.test("G6 all: the types are those of the coroutines", async () => {
  const [text, number]: [string, number] = await simulate(() => all([after(1, "a"), after(1, 2)]));
  assertEquals([text, number], ["a", 2]);
});

Deno.test("G6 all: the first error cancels the rest, which are awaited", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    assertEquals(yield* thrownBy(all([tidy(log, "a", 5), failing(10, "oops"), tidy(log, "b")])), "oops");
    assertEquals([log, loop.time()], [["b", "a"], 15]);
  });
});

Deno.test("G6 all: one that is not a coroutine is refused, and the others are cleaned up", async () => {
  await simulate(function* ({ loop }) {
    const error = yield* thrownBy(all([sleep(1000), null as unknown as Coroutine]));
    assertInstanceOf(error, TypeError);
    assertEquals([loop.time(), [...loop.tasks].length], [0, 1]);
  });
});

Deno.test("G6 race: the first to end wins, and the losers have cleaned up when it returns", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    assertEquals(yield* race([tidy(log, "loser", 25), after(10, "winner"), after(20, "second")]), "winner");
    assertEquals([log, loop.time()], [["loser"], 35]);
  });
});

Deno.test("G6 race: a tie goes to the first in the list, and undefined can win", async () => {
  await simulate(function* () {
    assertEquals(yield* race([after(10, "a"), after(10, "b")]), "a");
    const first: undefined | string = yield* race([after(1, undefined), after(2, "late")]); // the type is told, too
    assertEquals(first, undefined);
  });
});

Deno.test("G6 race: who is cancelled alone has not won", async () => {
  await simulate(function* () {
    function* gone(): Coroutine<string> {
      currentTask().cancel();
      yield* checkpoint();
      return "not reached";
    }
    assertEquals(yield* race([gone(), after(10, "winner")]), "winner");
    assertInstanceOf(yield* thrownBy(race([gone()])), TaskError);
  });
});

Deno.test("G6 race: an error that comes first is thrown, an error of a loser's cleanup too", async () => {
  await simulate(function* () {
    const log: string[] = [];
    assertEquals(yield* thrownBy(race<unknown>([failing(1, "oops"), tidy(log, "loser")])), "oops");
    assertEquals(log, ["loser"]);
    function* bad(): Coroutine<void> {
      try {
        yield* sleep(1000);
      } finally {
        throw "cleanup";
      }
    }
    assertEquals(yield* thrownBy(race<unknown>([after(1, "winner"), bad()])), "cleanup");
    const error = yield* thrownBy(race([]));
    assertInstanceOf(error, TypeError);
    assertEquals(error.message, "Cannot race no coroutines: nobody would win");
  });
});

Deno.test("G6 race: an error in the turn of the winner is not lost", async () => {
  await simulate(function* () {
    function* fails(): Coroutine {
      yield* sleep(1);
      throw "in the same turn";
    }
    assertEquals(yield* thrownBy(race([sleep(1), fails()])), "in the same turn");
  });
});

Deno.test("G6 race: cancelled from outside it passes the cancellation on", async () => {
  await simulate(function* () {
    const log: string[] = [];
    assertEquals(yield* moveOnAfter(10, race([tidy(log, "a"), tidy(log, "b")])), undefined);
    assertEquals(log, ["a", "b"]);
  });
});

Deno.test("G6 all of nothing is a cancellation point", async () => {
  await simulate(() =>
    cancelScope(function* (scope) {
      scope.cancel();
      yield* all([]);
      throw new Error("It was not cancelled");
    })
  );
});

// ---- G7 --------------------------------------------------------------------------------------------------------

Deno.test("G7 children inherit the deadline and the cancel around the group", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    yield* moveOnAfter(
      50,
      taskGroup(function* (group) {
        group.createTask(tidy(log, "child"));
      }),
    );
    assertEquals([log, loop.time()], [["child"], 50]);
  });
});

Deno.test("G7 they do not inherit the scopes around the place that calls createTask", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    yield* taskGroup(function* (group) {
      yield* moveOnAfter(
        10,
        (function* () {
          group.createTask((function* () {
            yield* sleep(100);
            log.push(`child at ${loop.time()}`);
          })());
          yield* sleep(1000);
        })(),
      );
      log.push(`body at ${loop.time()}`);
    });
    assertEquals(log, ["body at 10", "child at 100"]);
  });
});

Deno.test("G7 nor does a shield at that place cover them, but one around the group does", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    yield* moveOnAfter(
      10,
      taskGroup(function* (group) {
        yield* shield((function* () {
          group.createTask(tidy(log, "child"));
          yield* sleep(20);
          log.push("body");
        })());
      }),
    );
    assertEquals(log, ["child", "body"]);
    yield* moveOnAfter(
      10,
      shield(taskGroup(function* (group) {
        group.createTask(after(50, 1));
      })),
    );
    assertEquals(loop.time(), 70);
  });
});

Deno.test("G7 a task of another group, given the group, starts children that belong to it", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    yield* taskGroup(function* (outer) {
      yield* taskGroup(function* (inner) {
        inner.createTask((function* () {
          outer.createTask(tidy(log, "in outer"));
          yield* sleep(5);
        })());
      });
      log.push(`inner ended at ${loop.time()}`);
      outer.cancel();
    });
    assertEquals(log, ["inner ended at 5", "in outer"]);
  });
});

// ---- start -----------------------------------------------------------------------------------------------------

/** Says after `ms` that it has started, then works for `work`. */
function server(ms: number, work: number, log: string[] = []): (started: (port: number) => void) => Coroutine<void> {
  return function* (started) {
    try {
      yield* sleep(ms);
      started(8080);
      yield* sleep(work);
      log.push("served");
    } finally {
      log.push("closed");
    }
  };
}

Deno.test("G1 start waits until the task says that it is ready, and the task goes on in the group", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    yield* taskGroup(function* (group) {
      assertEquals(yield* group.start(server(10, 20, log)), 8080);
      assertEquals([loop.time(), group.size], [10, 1]);
    });
    assertEquals([log, loop.time()], [["served", "closed"], 30]);
  });
});

Deno.test("G2 start throws the error of a task that fails before it is ready, and the group goes on", async () => {
  await simulate(function* () {
    const value = yield* taskGroup(function* (group) {
      assertEquals(yield* thrownBy(group.start(() => failing(5, "no port"))), "no port");
      const error = yield* thrownBy(group.start(() => sleep(5)));
      assertEquals(error.message, "Cannot wait for task 3 to start: it ended without saying that it had");
      yield* sleep(5);
      return "goes on";
    });
    assertEquals(value, "goes on");
  });
});

Deno.test("G2 an error after it was ready is the group's", async () => {
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      yield* group.start(function* (started) {
        started();
        yield* sleep(5);
        throw "later";
      });
      yield* sleep(1000);
    }));
    assertEquals(error, "later");
  });
});

Deno.test("G4 a start that is cancelled cancels the task and waits for its cleanup", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    yield* taskGroup(function* (group) {
      assertEquals(yield* moveOnAfter(10, group.start(() => tidy(log, "child", 15))), undefined);
      assertEquals([log, loop.time(), group.size], [["child"], 25, 0]);
    });
  });
});

Deno.test("G4 a start that is cancelled hands its reason on to the task", async () => {
  await simulate(function* () {
    let reason: unknown;
    yield* taskGroup(function* (group) {
      yield* cancelScope(function* (scope) {
        const task = group.createTask(cancelSoon(scope));
        yield* group.start(function* () {
          try {
            yield* sleep(1000);
          } catch (error) {
            reason = (error as Cancelled).reason;
            throw error;
          }
        });
        yield* task.join();
      });
    });
    assertEquals(reason, "too slow");
    function* cancelSoon(scope: CancelScope): Coroutine<void> {
      yield* sleep(1);
      scope.cancel("too slow");
    }
  });
});

Deno.test("G2 a start that is cancelled does not lose the error of that cleanup", async () => {
  await simulate(function* () {
    yield* taskGroup(function* (group) {
      const error = yield* thrownBy(moveOnAfter(
        10,
        group.start(function* () {
          try {
            yield* sleep(1000);
          } finally {
            throw "cleanup";
          }
        }),
      ));
      assertEquals(error, "cleanup");
    });
  });
});

Deno.test("G1 start: ready twice is an error, ready at once is fine", async () => {
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      yield* group.start(function* (started) {
        started();
        started();
      });
    }));
    assertEquals(error.message, "Cannot start task 2 twice: it has said already that it has started");
    yield* taskGroup(function* (group) {
      const value = yield* group.start<string>((started) => {
        started("before the first step");
        return sleep(1);
      });
      assertEquals(value, "before the first step");
    });
  });
});

Deno.test("G1 start: what is said before the first step counts, and the wait is an op all the same", async () => {
  function atOnce(started: (n: number) => void): Coroutine {
    started(1);
    return sleep(1000);
  }
  await simulate(({ loop }) =>
    taskGroup(function* (group) {
      assertEquals([yield* group.start(atOnce), loop.time()], [1, 0]);
      group.cancel();
      yield* group.start(atOnce);
      throw new Error("It was not cancelled");
    })
  );
});

// ---- Timers ----------------------------------------------------------------------------------------------------

Deno.test("T1 10^5 timers set and cancelled leave nothing behind", async () => {
  await simulate(function* ({ loop }) {
    for (let i = 0; i < 100_000; i++) yield* failAfter(1e6 + i % 7, checkpoint());
    assertEquals(timers(loop), 0);
    yield* taskGroup(function* (group) {
      for (let i = 0; i < 100_000; i++) group.createTask(sleep(1e6 + i % 1000));
      yield* checkpoint();
      assertEquals(timers(loop), 100_000);
      group.cancel();
    });
    assertEquals([timers(loop), loop.time()], [0, 0]);
  });
});

Deno.test("T1 deadlines set, moved and left in any order fire in the order of their times", async () => {
  await simulate(function* ({ loop }) {
    const fired: [at: number, deadline: number][] = [];
    let seed = 7;
    const random = (n: number) => (seed = seed * 48271 % 2147483647) % n;
    yield* taskGroup(function* (group) {
      for (let i = 0; i < 500; i++) {
        const first = random(1000);
        const last = random(1000);
        group.createTask(cancelScope(function* (scope) {
          yield* checkpoint();
          scope.deadline = last;
          if (i % 5 === 0) return;
          try {
            yield* sleep(1e6);
          } finally {
            fired.push([loop.time(), scope.deadline]);
          }
        }, { deadline: 1 + first }));
      }
    });
    assertEquals(fired.length, 400);
    for (const [at, deadline] of fired) assertEquals(at, deadline);
    assertEquals(timers(loop), 0);
  });
});

// ---- The loop around it ----------------------------------------------------------------------------------------

Deno.test("G1 the outcome of a group is the outcome of run", async () => {
  const { loop } = simulation();
  const oops = new Error("oops");
  const group = taskGroup(function* (group) {
    group.createTask(failing(1, oops));
  });
  assertStrictEquals(await assertRejects(() => loop.run(group)), oops);
  assertEquals([...loop.tasks], []);
});

Deno.test("G1 groups of two loops do not meet", async () => {
  const sims: Simulation[] = [simulation(), simulation()];
  const tasks: Task[] = [];
  await Promise.all(sims.map(({ loop }, i) =>
    loop.run(taskGroup(function* (group) {
      tasks.push(group.createTask(sleep(10 * (i + 1))));
    }))
  ));
  assertEquals(tasks.map((task) => task.done), [true, true]);
});

// ---- What trio's and curio's users also rely on ----------------------------------------------------------------

Deno.test("T2 a thousand nested scopes, the outermost of which is cancelled", async () => {
  await simulate(function* () {
    const caught: number[] = [];
    function* nest(depth: number): Coroutine<void> {
      yield* cancelScope(function* (scope) {
        try {
          yield* depth > 0 ? nest(depth - 1) : sleep(1e6);
        } finally {
          if (scope.cancelCalled) caught.push(depth);
        }
      }, { deadline: depth === 1000 ? 5 : Infinity });
    }
    yield* nest(1000);
    assertEquals(caught, [1000]);
  });
});

Deno.test("T1 a block that times out in a shield moves on, and so does a shield with a timeout", async () => {
  await simulate(function* ({ loop }) {
    yield* cancelScope(function* (outer) {
      outer.cancel();
      yield* shield(moveOnAfter(10, sleep(1000)));
      assertEquals(loop.time(), 10);
      assertEquals(yield* shield(sleep(1000), { timeout: 10 }), undefined);
      assertEquals(loop.time(), 20);
      assertInstanceOf(yield* thrownBy(shield(failAfter(10, sleep(1000)))), TimeoutError);
      assertEquals(loop.time(), 30);
    });
  });
});

Deno.test("T1 a time limit that cannot be met is met at once, in a loop of them as well", async () => {
  await simulate(function* ({ loop }) {
    let timeouts = 0;
    for (let i = 0; i < 100; i++) {
      try {
        yield* failAfter(0, sleep(1));
      } catch (error) {
        assertInstanceOf(error, TimeoutError);
        timeouts++;
      }
    }
    assertEquals([timeouts, loop.time()], [100, 0]);
  });
});

Deno.test("T2 scopes that are left in the wrong order are an error, not a mystery", async () => {
  const { loop, errors } = simulation();
  const error = await assertRejects(() =>
    loop.run((function* () {
      const outer = cancelScope(() => checkpoint());
      const inner = cancelScope(() => checkpoint());
      yield outer.next().value as never; // stepped by hand: it is entered, and not left yet
      inner.next();
      outer.next();
    })())
  );
  assertInstanceOf(error, Error);
  assert(/^Cannot leave a cancel scope of task 1 "main": it is not the innermost one$/.test(error.message));
  assertEquals(errors, []);
  assertEquals([...loop.tasks], []);
});

Deno.test("G4 start in a group that is cancelled already: the task starts, and is cancelled at its first op", async () => {
  await simulate(function* () {
    const log: string[] = [];
    yield* taskGroup(function* (group) {
      group.cancel("closing time");
      const error = yield* thrownBy(shield(group.start(function* () {
        log.push("started");
        yield* checkpoint();
        log.push("not reached");
      })));
      assertInstanceOf(error, Cancelled);
      assertEquals(error.reason, "closing time");
    });
    assertEquals(log, ["started"]);
  });
});

Deno.test("G4 a start in a shield, whose task is cancelled with its group, is cancelled too, and no error of the group", async () => {
  await simulate(function* ({ loop }) {
    const oops = new Error("oops");
    function* startShielded(group: TaskGroup): Coroutine<string> {
      yield* shield(group.start(function* () {
        yield* sleep(20);
      }));
      return "started";
    }
    const fromOutside = yield* moveOnAfter(10, taskGroup(startShielded));
    const byItself = yield* taskGroup(function* (group) {
      group.createTask(function* (): Coroutine {
        yield* sleep(10);
        group.cancel();
      }());
      return yield* startShielded(group);
    });
    assertEquals([fromOutside, byItself, loop.time()], [undefined, undefined, 20]);
    const failed = taskGroup(function* (group) {
      group.createTask(failing(10, oops));
      yield* startShielded(group);
    });
    assertStrictEquals(yield* thrownBy(failed), oops);
  });
});

Deno.test("G4 a start by who is cancelled already: the task starts, and is cancelled at its first op", async () => {
  await simulate(function* () {
    const log: string[] = [];
    yield* taskGroup(function* (group) {
      yield* cancelScope(function* (scope) {
        scope.cancel("no need");
        yield* group.start(function* () {
          log.push("started");
          try {
            yield* checkpoint();
            log.push("not reached");
          } catch (error) {
            log.push((error as Cancelled).reason as string);
            throw error;
          }
        });
      });
    });
    assertEquals(log, ["started", "no need"]);
  });
});

Deno.test("G4 C11 a start from outside the group throws TaskError if the group is cancelled; one from within ends with it", async () => {
  await simulate(function* ({ loop }) {
    const never = () => sleep(Infinity);
    let group!: TaskGroup;
    let within: unknown = "not ended";
    const owner = loop.createTask(taskGroup(function* (it) {
      group = it;
      try {
        yield* shield(group.start(never));
      } catch (error) {
        within = error;
        throw error;
      }
    }));
    const outside = loop.createTask(thrownBy(() => group.start(never)));
    yield* sleep(1);
    group.cancel("enough");
    const error = yield* outside.join();
    assertInstanceOf(error, TaskError);
    assertInstanceOf(error.cause, Cancelled);
    assertEquals(yield* owner.join(), undefined);
    assertInstanceOf(within, Cancelled);
  });
});

Deno.test("G1 a start from another task keeps the group open until it has started and ended", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    let starter!: Task;
    yield* taskGroup(function* (group) {
      starter = loop.createTask((function* () {
        log.push(`started ${yield* group.start(server(20, 30, log))}`);
      })());
      yield* sleep(10);
    });
    assertEquals([log, loop.time()], [["started 8080", "served", "closed"], 50]);
    assert(starter.done);
  });
});

Deno.test("G5 what a cancelled task held is free as soon as the task has ended", async () => {
  await simulate(function* ({ loop }) {
    yield* taskGroup(function* (group) {
      const tasks = Array.from({ length: 100 }, () => group.createTask(moveOnAfter(1e6, shieldless())));
      yield* sleep(1);
      for (const task of tasks) task.cancel();
      yield* sleep(1);
      assertEquals([group.size, timers(loop), loop._parked], [0, 0, 0]);
    });
    function* shieldless(): Coroutine<void> {
      yield* cancelScope(() => new Event().wait(), { timeout: 1e7 });
    }
  });
});

Deno.test("G2 the very same error from two children is thrown once, as it is", async () => {
  await simulate(function* () {
    const shared = new Error("shared");
    assertStrictEquals(yield* thrownBy(all([failing(1, shared), failing(1, shared)])), shared);
  });
});

Deno.test("G6 all and race given what a generator makes: a list of any length", async () => {
  await simulate(function* () {
    const many = Array.from({ length: 1000 }, (_, i) => after((i * 7919) % 1000, i));
    assertEquals(yield* all(many), Array.from({ length: 1000 }, (_, i) => i));
    assertEquals(yield* race(Array.from({ length: 1000 }, (_, i) => after(1 + (i * 7919) % 1000, i))), 0);
  });
});

for (const way of ["returns", "is cancelled"]) {
  Deno.test(`G1 a child born when the last has ended is waited for too: the body ${way}`, async () => {
    await simulate(function* ({ loop }) {
      const last = new Event();
      const log: string[] = [];
      let group!: TaskGroup;
      loop.createTask((function* () {
        yield* last.wait();
        // The last child ends in this turn, before this task runs again: the block is woken, and runs after it.
        yield* checkpoint();
        assertEquals(group.size, 0);
        group.createTask(tidy(log, "born", 10));
        group.cancel();
      })());
      yield* taskGroup(function* (own) {
        group = own;
        own.createTask(shield((function* () {
          yield* sleep(5);
          last.set();
          yield* checkpoint();
        })()));
        if (way === "is cancelled") own.cancel();
      });
      assertEquals([loop.time(), log], [15, ["born"]]);
    });
  });
}

Deno.test("T1 G1 G6 a block adds no op but the wait for its tasks", async () => {
  const ops: string[] = [];
  await simulate(function* () {
    yield* all([sleep(1)]);
    yield* taskGroup(function* (group) {
      group.createTask(sleep(2));
    });
    yield* thrownBy(failAfter(5, sleep(10)));
  }, { trace: ({ op, args }) => void ops.push(`${op} ${args}`) });
  const wait = "park the tasks of its group";
  assertEquals(ops, [wait, "sleep 1", wait, "sleep 2", "sleep 10"]);
});

// ---- Wrong arguments -------------------------------------------------------------------------------------------------

Deno.test("K6 cancelScope and taskGroup say where they are written that they take a function", () => {
  for (const wrong of [undefined, null, 5, sleep(1), {}] as never[]) {
    assertThrows(() => cancelScope(wrong), TypeError, "cancelScope takes a function, as in cancelScope(function* ()");
    assertThrows(() => taskGroup(wrong), TypeError, "taskGroup takes a function, as in taskGroup(function* ()");
  }
});

Deno.test("K6 a coroutine that was run cannot be run again: a retry that forgets that is told so", async () => {
  await simulate(function* ({ loop }) {
    const again: ((coro: Coroutine<void>) => Coroutine<unknown>)[] = [
      (coro) => failAfter(5, coro),
      (coro) => moveOnAfter(5, coro),
      (coro) => shield(coro),
      (coro) => cancelScope(() => coro),
      (coro) => taskGroup(() => coro),
      (coro) => call(coro),
      (coro) => loop.createTask(coro).join(),
    ];
    function* sleeper(): Coroutine<void> {
      yield* sleep(1000);
    }
    for (const make of [() => sleep(1000), sleeper]) {
      for (const run of again) {
        const coro = make();
        yield* moveOnAfter(1, coro);
        const error = yield* thrownBy(() => run(coro));
        assertInstanceOf(error, TypeError);
        assertMatch(error.message, /this coroutine: it runs already, or has run; call its function again$/);
      }
    }
  });
});

// ---- Errors at the edges of a block --------------------------------------------------------------------------------

function* dirty(): Coroutine<void> {
  try {
    yield* sleep(1000);
  } finally {
    throw new Error("cleanup");
  }
}

Deno.test("C10 an error in the cleanup of a block that timed out names the cancellation as its cause", async () => {
  await simulate(function* () {
    for (const block of [failAfter(5, dirty()), moveOnAfter(5, dirty())]) {
      const error = yield* thrownBy(block);
      assertEquals(error.message, "cleanup");
      assertInstanceOf(error.cause, Cancelled);
    }
  });
});

Deno.test("C10 G3 so does one in the cleanup of a group's body, but not the error that cancelled the group", async () => {
  await simulate(function* () {
    function* failing(): Coroutine<void> {
      yield* sleep(1);
      throw new Error("child");
    }
    const both = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(failing());
      yield* dirty();
    }));
    assertEquals(both.errors.map((error: Error) => error.message), ["cleanup", "child"]);
    assertInstanceOf(both.errors[0].cause, Cancelled);
    assertEquals([both.cause, both.errors[1].cause], [undefined, undefined]);
    const one = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(failing());
      yield* sleep(1000);
    }));
    assertEquals([one.message, one.cause], ["child", undefined]);
  });
});

Deno.test("C9 G3 a Cancelled from elsewhere that a group's body throws is an error like any other", async () => {
  await simulate(function* () {
    const foreign = new Cancelled("from another loop");
    const error = yield* thrownBy(taskGroup(function* (group) {
      group.createTask(dirty());
      yield* sleep(1);
      throw foreign;
    }));
    assertEquals(error.errors.map((error: Error) => error.message), [foreign.message, "cleanup"]);
  });
});

Deno.test("G1 a group waits for its tasks, whatever its body throws", async () => {
  await simulate(function* () {
    const { proxy, revoke } = Proxy.revocable({}, {});
    revoke();
    let task: Task | undefined;
    let thrown: unknown;
    try {
      yield* taskGroup(function* (group) {
        task = group.createTask(sleep(1000));
        yield* sleep(1);
        throw proxy;
      });
    } catch (error) {
      thrown = error;
    }
    assert(thrown === proxy && task!.done);
  });
});

Deno.test("G5 a group whose block was ended by hand takes no more tasks", async () => {
  await simulate(function* () {
    let group!: TaskGroup;
    const block = taskGroup(function* (own) {
      group = own;
      yield* sleep(1000);
    });
    block.next();
    block.return(undefined as never);
    assertThrows(() => group.createTask(sleep(1)), Error, "in this group: its block has ended");
  });
});

Deno.test("G4 a start that is ended by hand cancels its task, unless that has said that it is ready", async () => {
  for (const ready of [true, false]) {
    await simulate(function* () {
      let child!: Task;
      yield* taskGroup(function* (group) {
        const starting = group.start(function* (started): Coroutine {
          child = currentTask();
          if (ready) started();
          yield* sleep(5);
        });
        starting.next();
        yield* checkpoint();
        starting.return(undefined);
        yield* child.wait();
      });
      assertEquals(child.cancelled, !ready);
    });
  }
});

Deno.test("K8 what fails in a group whose block was ended by hand is reported", async () => {
  const errors: unknown[] = [];
  const { loop } = simulation({ onError: (error: unknown) => errors.push(error) });
  await loop.run((function* (): Coroutine<void> {
    const block = taskGroup(function* (group) {
      group.createTask((function* (): Coroutine<void> {
        yield* sleep(5);
        throw new Error("boom");
      })());
      yield* sleep(1000);
    });
    block.next();
    block.return(undefined as never);
    yield* sleep(20);
  })());
  assertEquals(errors.map((error) => (error as Error).message), ["boom"]);
});

Deno.test("K8 what fails in such a group is not reported if a start throws it", async () => {
  await simulate(function* ({ loop }) {
    let group!: TaskGroup;
    const block = taskGroup(function* (own) {
      group = own;
      yield* sleep(1000);
    });
    block.next();
    const starter = loop.createTask(thrownBy(group.start(() => failing(5, "boom"))));
    yield* checkpoint();
    block.return(undefined as never);
    assertEquals(yield* starter.join(), "boom");
  });
});

Deno.test("G1 start: ready twice before the task is there is that error, not another", async () => {
  await simulate(function* () {
    yield* taskGroup(function* (group) {
      const starting = group.start<number>((started) => {
        started(1);
        started(2);
        return sleep(1);
      });
      assertEquals(
        (yield* thrownBy(starting)).message,
        "Cannot start a task twice: it has said already that it has started",
      );
    });
  });
});

Deno.test("G4 a start that is cancelled cancels its task, though that says just then that it is ready", async () => {
  await simulate(function* ({ loop }) {
    const log: string[] = [];
    function* quick(started: (port: number) => void): Coroutine {
      try {
        started(8080);
        yield* sleep(1000);
      } finally {
        log.push("closed");
      }
    }
    yield* taskGroup(function* (group) {
      assertEquals(yield* moveOnAfter(0, group.start(quick)), undefined);
      assertEquals([group.size, log, loop.time()], [0, ["closed"], 0]);
    });
    // What its cleanup throws is the group's, and not the start's as well.
    let value: unknown = "not reached";
    const block = taskGroup(function* (group) {
      value = yield* moveOnAfter(
        0,
        group.start<void>(function* (started) {
          started();
          yield* dirty();
        }),
      );
    });
    assertEquals([(yield* thrownBy(block)).message, value], ["cleanup", undefined]);
  });
});

Deno.test("G2 start: what says that it is ready for a task that has ended gets the error, and the task's is not lost", async () => {
  await simulate(function* () {
    const error = yield* thrownBy(taskGroup(function* (group) {
      let say!: (n: number) => void;
      function* late(): Coroutine {
        yield* checkpoint();
        yield* checkpoint();
        say(7);
      }
      return yield* group.start<number>(function* (started) {
        say = started;
        group.createTask(late());
        yield* checkpoint();
        yield* checkpoint();
        throw new Error("not lost");
      });
    }));
    assertInstanceOf(error, AggregateError);
    assertEquals(error.errors.map(({ message }: Error) => message).sort(), [
      "Cannot start task 2: it has ended",
      "not lost",
    ]);
  });
});

Deno.test("G1 a group in which nothing was started lets the others run, and returns what its body did", async () => {
  await simulate(function* ({ loop }) {
    let stop = false;
    loop.createTask(function* (): Coroutine {
      stop = true;
    }());
    let rounds = 0;
    for (; !stop && rounds < 100; rounds++) yield* taskGroup(function* () {});
    assertEquals(rounds, 1);
    const value = yield* taskGroup(function* (group) {
      group.cancel();
      return "what it returned";
    });
    assertEquals(value, "what it returned");
  });
});

Deno.test("C4 T4 a group in which nothing was started keeps what its body has got", async () => {
  await simulate(function* ({ loop, world }) {
    const queue = new Queue<string>();
    let got: string | undefined;
    const task = loop.createTask(function* (): Coroutine {
      got = yield* taskGroup(function* () {
        return yield* queue.get();
      });
    }());
    yield* sleep(1);
    queue.putNowait("item");
    task.cancel();
    yield* task.wait();
    assertEquals([got, queue.size], ["item", 0]);
    const late = failAfter(
      5,
      taskGroup(function* () {
        world.hold(20);
        return "done";
      }),
    );
    assertEquals(yield* late, "done");
  });
});

/** What a group makes of what its body returns, if it is cancelled from further out once its only task was ended by `how`. */
function* keptAfter(
  how: (group: TaskGroup, task: Task, outer: CancelScope) => void,
  coro: Coroutine<unknown> = sleep(Infinity),
): Coroutine<string | undefined> {
  let got: string | undefined;
  yield* cancelScope(function* (outer) {
    got = yield* taskGroup(function* (group) {
      const task = group.createTask(coro);
      yield* checkpoint();
      how(group, task, outer);
      yield* shield(task.wait());
      outer.cancel();
      return "item";
    });
  });
  return got;
}

Deno.test("C4 G4 a body keeps what it has got though a task was cancelled by itself, or with its group", async () => {
  await simulate(function* () {
    assertEquals(yield* keptAfter((_, task) => task.cancel()), "item");
    assertEquals(yield* keptAfter((group) => group.cancel()), "item");
    // A task that returns the Cancelled was not ended by it.
    assertEquals(yield* keptAfter((_group, _task, outer) => outer.cancel(), thrownBy(sleep(Infinity))), "item");
  });
});

/** A cleanup that outlasts its deadline. */
function* slow(): Coroutine {
  yield* failAfter(
    5,
    function* (): Coroutine {
      try {
        yield* sleep(100);
      } finally {
        yield* shield(sleep(20));
      }
    }(),
  );
}

Deno.test("G4 T2 a cancellation from outside that comes while failAfter cleans up goes first", async () => {
  await simulate(function* ({ loop }) {
    let task!: Task;
    yield* taskGroup(function* (group) {
      task = group.createTask(slow());
      group.createTask(sleep(1000));
      yield* sleep(10);
      task.cancel();
    });
    assertEquals([task.cancelled, loop.time()], [true, 1000]);
    yield* taskGroup(function* (group) {
      group.createTask(slow());
      yield* sleep(10);
      group.cancel();
    });
    assertEquals(yield* moveOnAfter(10, slow()), undefined);
    assertInstanceOf(yield* thrownBy(slow()), TimeoutError);
    assertInstanceOf(yield* thrownBy(moveOnAfter(10, shield(slow()))), TimeoutError);
  });
});
