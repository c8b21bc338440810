/**
 * The stand-ins for `@std/assert` and `@std/testing`: that what must fail fails. With JSR in reach the same tests run
 * against the real packages, and so tell whether the stand-ins are true to them.
 */
import {
  assert,
  assertEquals,
  AssertionError,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { assertSpyCall, assertSpyCalls, spy } from "@std/testing/mock";
import { FakeTime } from "@std/testing/time";

class Point {
  constructor(readonly x: number, readonly y: number) {}
}

Deno.test("what is equal in content is equal, and nothing else", () => {
  const equal: [unknown, unknown][] = [
    [0, -0],
    [NaN, NaN],
    [[1, { a: [2] }], [1, { a: [2] }]],
    [new Uint8Array([1, 2]), new Uint8Array([1, 2])],
    [new Map([["a", { b: 1 }]]), new Map([["a", { b: 1 }]])],
    [new Set([1, 2]), new Set([2, 1])],
    [new Point(1, 2), new Point(1, 2)],
    [new Date(5), new Date(5)],
    [/a/g, /a/g],
    [Object.create(null), {}],
  ];
  for (const [a, b] of equal) assertEquals(a, b);
  const different: [unknown, unknown][] = [
    [1, "1"],
    [null, undefined],
    [[1, 2], [2, 1]],
    [{ a: undefined }, {}],
    [new Uint8Array([1, 2]), new Uint8Array([1, 3])],
    [new Uint8Array([1]), [1]],
    [new Map([["a", 1]]), new Map([["a", 2]])],
    [new Set([1]), new Set([2])],
    [new Point(1, 2), { x: 1, y: 2 }],
    [new Error("a"), new Error("b")],
    [/a/g, /a/],
  ];
  for (const [a, b] of different) {
    assertNotEquals(a, b);
    assertThrows(() => assertEquals(a, b), AssertionError);
  }
});

Deno.test("a loop in a value does not hang the comparison", () => {
  const ring = () => {
    const value: Record<string, unknown> = { a: 1 };
    value.self = value;
    return value;
  };
  assertEquals(ring(), ring());
});

Deno.test("what throws and what rejects is told apart and checked", async () => {
  const error = new RangeError("Out of range");
  const thrower = () => {
    throw error;
  };
  assertStrictEquals(assertThrows(thrower), error);
  assertStrictEquals(assertThrows(thrower, RangeError, "range"), error);
  assertThrows(() => assertThrows(thrower, TypeError), AssertionError);
  assertThrows(() => assertThrows(thrower, RangeError, "reach"), AssertionError);
  assertThrows(() => assertThrows(() => {}), AssertionError);
  assertStrictEquals(await assertRejects(() => Promise.reject(error), RangeError, "range"), error);
  await assertRejects(() => assertRejects(() => Promise.reject(error), TypeError), AssertionError);
  await assertRejects(() => assertRejects(() => Promise.resolve()), AssertionError);
  await assertRejects(() => assertRejects(thrower), AssertionError);
});

Deno.test("a spy remembers what it was called with, and what came of it", () => {
  const double = spy((n: number) => n * 2);
  assertEquals([double(2), double(3)], [4, 6]);
  assertSpyCalls(double, 2);
  assertSpyCall(double, 1, { args: [3], returned: 6 });
  assertThrows(() => assertSpyCalls(double, 1), AssertionError);
  assertThrows(() => assertSpyCall(double, 0, { args: [3] }), AssertionError);
});

Deno.test("fake time fires timers in order, and only when it is told to", async () => {
  const fired: string[] = [];
  {
    using time = new FakeTime(1000);
    setTimeout(() => fired.push(`late ${Date.now()}`), 20);
    setTimeout((name: string) => fired.push(`${name} ${Date.now()}`), 10, "early");
    const tick = setInterval(() => fired.push(`every ${Date.now()}`), 15);
    clearTimeout(setTimeout(() => fired.push("never"), 5));
    time.tick(9);
    assertEquals(fired, []);
    time.tick(11);
    assertEquals(fired, ["early 1010", "every 1015", "late 1020"]);
    assert(time.next());
    assertEquals([fired.at(-1), time.now, time.start], ["every 1030", 1030, 1000]);
    clearInterval(tick);
    assertEquals(await time.nextAsync(), false);
  }
  assert(Date.now() > 2000);
});
