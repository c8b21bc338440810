/** Stand-ins for what the tests use of `@std/assert`, over Deno's built-in `node:assert`. */
import assertModule from "node:assert";

export class AssertionError extends Error {
  override name = "AssertionError";
}

export function assert(expr: unknown, msg = ""): asserts expr {
  if (!expr) throw new AssertionError(msg || "Expected a truthy value");
}

export function assertEquals<T>(actual: T, expected: T, msg?: string): void {
  assertModule.deepStrictEqual(actual, expected, msg);
}

export function assertNotEquals<T>(actual: T, expected: T, msg?: string): void {
  assertModule.notDeepStrictEqual(actual, expected, msg);
}

export function assertStrictEquals<T>(actual: unknown, expected: T, msg?: string): asserts actual is T {
  assertModule.strictEqual(actual, expected, msg);
}

export function assertInstanceOf<T>(
  actual: unknown,
  type: abstract new (...args: any[]) => T,
  msg?: string,
): asserts actual is T {
  if (!(actual instanceof type)) throw new AssertionError(msg ?? `Expected an instance of ${type.name}, got ${actual}`);
}

export function assertStringIncludes(actual: string, expected: string, msg?: string): void {
  if (!actual.includes(expected)) throw new AssertionError(msg ?? `Expected ${JSON.stringify(actual)} to contain ${JSON.stringify(expected)}`);
}

export function assertMatch(actual: string, expected: RegExp, msg?: string): void {
  assertModule.match(actual, expected, msg);
}

export function fail(msg = "Failed"): never {
  throw new AssertionError(msg);
}

type ErrorClass<E> = abstract new (...args: any[]) => E;

function check<E extends Error>(error: unknown, type?: ErrorClass<E>, includes?: string): E {
  if (!(error instanceof Error)) throw new AssertionError(`Expected an Error, got ${error}`);
  if (type && !(error instanceof type)) {
    throw new AssertionError(`Expected ${type.name}, got ${error.name}: ${error.message}`);
  }
  if (includes !== undefined) assertStringIncludes(error.message, includes);
  return error as E;
}

export function assertThrows<E extends Error = Error>(fn: () => unknown, type?: ErrorClass<E>, includes?: string): E {
  try {
    fn();
  } catch (error) {
    return check(error, type, includes);
  }
  throw new AssertionError("Expected function to throw");
}

export async function assertRejects<E extends Error = Error>(
  fn: () => PromiseLike<unknown>,
  type?: ErrorClass<E>,
  includes?: string,
): Promise<E> {
  let promise;
  try {
    promise = fn();
  } catch {
    throw new AssertionError("Function throws when expected to reject");
  }
  try {
    await promise;
  } catch (error) {
    return check(error, type, includes);
  }
  throw new AssertionError("Expected function to reject");
}
