/**
 * Stand-ins for what the tests use of `@std/assert`, for machines that cannot reach JSR: the same names, the same types,
 * the same verdicts. What they print when they fail is `node:assert`'s.
 *
 * @module
 */
import { AssertionError as NodeAssertionError } from "node:assert";

/** Thrown by every assertion that does not hold. */
export class AssertionError extends Error {
  override name = "AssertionError";
}

type ErrorClass<E> = abstract new (...args: any[]) => E;
type Falsy = false | 0 | 0n | "" | null | undefined;

export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg);
}

export function assertFalse(expr: unknown, msg = ""): asserts expr is Falsy {
  if (expr) throw new AssertionError(msg);
}

export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  if (!equal(actual, expected)) throw new AssertionError(difference("deepStrictEqual", actual, expected, msg));
}

export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  if (equal(actual, expected)) throw new AssertionError(difference("notDeepStrictEqual", actual, expected, msg));
}

export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  if (!Object.is(actual, expected)) throw new AssertionError(difference("strictEqual", actual, expected, msg));
}

export function assertExists<T>(actual: T, msg?: string): asserts actual is NonNullable<T> {
  if (actual == null) throw new AssertionError(because(`Expected ${actual} to be neither null nor undefined`, msg));
}

export function assertGreater<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual > expected)) throw new AssertionError(msg ?? `Expected ${show(actual)} > ${show(expected)}`);
}

export function assertGreaterOrEqual<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual >= expected)) throw new AssertionError(msg ?? `Expected ${show(actual)} >= ${show(expected)}`);
}

export function assertLess<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual < expected)) throw new AssertionError(msg ?? `Expected ${show(actual)} < ${show(expected)}`);
}

export function assertLessOrEqual<T>(actual: T, expected: T, msg?: string): void {
  if (!(actual <= expected)) throw new AssertionError(msg ?? `Expected ${show(actual)} <= ${show(expected)}`);
}

export function assertInstanceOf<T extends ErrorClass<any>>(
  actual: unknown,
  expectedType: T,
  msg = "",
): asserts actual is InstanceType<T> {
  if (actual instanceof expectedType) return;
  throw new AssertionError(because(`Expected an instance of ${expectedType.name}, got ${show(actual)}`, msg));
}

export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  if (actual.includes(expected)) return;
  throw new AssertionError(because(`Expected ${show(actual)} to contain ${show(expected)}`, msg));
}

export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  if (expected.test(actual)) return;
  throw new AssertionError(because(`Expected ${show(actual)} to match ${expected}`, msg));
}

export function fail(msg?: string): never {
  throw new AssertionError(because("Failed assertion", msg));
}

export function assertIsError<E extends Error = Error>(
  error: unknown,
  type?: ErrorClass<E>,
  msgMatches?: string | RegExp,
  msg?: string,
): asserts error is E {
  if (!(error instanceof Error)) throw new AssertionError(because(`Expected an Error, got ${show(error)}`, msg));
  if (type && !(error instanceof type)) {
    const got = `${(error as Error).name}: ${(error as Error).message}`;
    throw new AssertionError(because(`Expected an instance of ${type.name}, got ${got}`, msg));
  }
  if (!msgMatches) return;
  const matches = typeof msgMatches === "string" ? error.message.includes(msgMatches) : msgMatches.test(error.message);
  if (matches) return;
  throw new AssertionError(because(`Expected ${show(error.message)} to include ${show(msgMatches)}`, msg));
}

export function assertThrows(fn: () => unknown, msg?: string): unknown;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  type: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): E;
export function assertThrows<E extends Error = Error>(
  fn: () => unknown,
  typeOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  try {
    fn();
  } catch (error) {
    return checkThrown(error, typeOrMsg, msgIncludes, msg);
  }
  throw new AssertionError(because("Expected function to throw", typeof typeOrMsg === "string" ? typeOrMsg : msg));
}

export function assertRejects(fn: () => PromiseLike<unknown>, msg?: string): Promise<unknown>;
export function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  type: ErrorClass<E>,
  msgIncludes?: string,
  msg?: string,
): Promise<E>;
export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  typeOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): Promise<unknown> {
  const text = typeof typeOrMsg === "string" ? typeOrMsg : msg;
  let promise;
  try {
    promise = fn();
  } catch {
    throw new AssertionError(because("Expected a promise that rejects, but the function gave none", text));
  }
  if (typeof promise?.then !== "function") {
    throw new AssertionError(because("Expected a promise that rejects, but the function gave none", text));
  }
  try {
    await promise;
  } catch (error) {
    return checkThrown(error, typeOrMsg, msgIncludes, msg);
  }
  throw new AssertionError(because("Expected function to reject", text));
}

function checkThrown<E extends Error>(
  error: unknown,
  typeOrMsg?: ErrorClass<E> | string,
  msgIncludes?: string,
  msg?: string,
): unknown {
  if (typeof typeOrMsg === "function") assertIsError(error, typeOrMsg, msgIncludes, msg);
  return error;
}

/**
 * Whether two values have the same content. Keys that are not enumerable and accessors of a class count, as they do in
 * `@std/assert`, and `0` equals `-0`; the comparisons of `node:assert` would see neither.
 */
export function equal(a: unknown, b: unknown): boolean {
  return same(a, b, new Map());
}

function same(a: unknown, b: unknown, seen: Map<unknown, unknown>): boolean {
  if (a === b || Object.is(a, b)) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  if (!samePrototype(a, b)) return false;
  if (seen.get(a) === b) return true;
  seen.set(a, b);
  if (a instanceof Date) return Object.is(a.getTime(), (b as Date).getTime());
  if (a instanceof RegExp || a instanceof URL || a instanceof URLSearchParams) return String(a) === String(b);
  if (a instanceof ArrayBuffer) return sameItems(new Uint8Array(a), new Uint8Array(b as ArrayBuffer));
  if (ArrayBuffer.isView(a) && !(a instanceof DataView)) return sameItems(a as Uint8Array, b as Uint8Array);
  if (a instanceof Set) return sameMembers([...a], [...b as Set<unknown>], seen);
  if (a instanceof Map) return sameMembers([...a], [...b as Map<unknown, unknown>], seen);
  return sameKeys(a, b, seen);
}

function samePrototype(a: object, b: object): boolean {
  const [p, q] = [Object.getPrototypeOf(a) ?? Object.prototype, Object.getPrototypeOf(b) ?? Object.prototype];
  return p === q;
}

function sameItems(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((item, i) => item === b[i] || Object.is(item, b[i]));
}

/** Whether each member of one has its equal in the other, in whatever order. */
function sameMembers(a: unknown[], b: unknown[], seen: Map<unknown, unknown>): boolean {
  return a.length === b.length && a.every((item) => b.some((other) => same(item, other, seen)));
}

function sameKeys(a: object, b: object, seen: Map<unknown, unknown>): boolean {
  if (Object.keys(a).length !== Object.keys(b).length) return false;
  for (const key of new Set([...allKeys(a), ...allKeys(b)]) as Set<keyof typeof a>) {
    if (key in a !== key in b || !same(a[key], b[key], seen)) return false;
  }
  return true;
}

function allKeys(object: object): PropertyKey[] {
  const keys: PropertyKey[] = [];
  for (let o = object; o && o !== Object.prototype && o !== Array.prototype; o = Object.getPrototypeOf(o)) {
    keys.push(...Reflect.ownKeys(o));
  }
  return keys;
}

function difference(operator: string, actual: unknown, expected: unknown, msg?: string): string {
  const { message } = new NodeAssertionError({ operator, actual, expected });
  return msg ? `${msg}\n${message}` : message;
}

function because(text: string, msg?: string): string {
  return msg ? `${text}: ${msg}` : text;
}

function show(value: unknown): string {
  return Deno.inspect(value, { depth: 2, strAbbreviateSize: 500 });
}
