/**
 * Stand-ins for what the tests use of `@std/testing/mock`: functions that remember their calls.
 *
 * @module
 */
import { AssertionError, equal } from "./assert.ts";

/** One call of a spy. */
export interface SpyCall<Self = any, Args extends unknown[] = any[], Return = any> {
  args: Args;
  returned?: Return;
  error?: Error;
  self?: Self;
}

/** A function that remembers its calls. */
export interface Spy<Self = any, Args extends unknown[] = any[], Return = any> {
  (this: Self, ...args: Args): Return;
  calls: SpyCall<Self, Args, Return>[];
}

/** What a call is expected to have been like; what is not named is not checked. */
export interface ExpectedSpyCall<Args extends unknown[] = any[], Return = any> {
  args?: Args;
  returned?: Return;
}

/** Wraps `fn`, or a function that does nothing. */
export function spy<Self = any, Args extends unknown[] = any[], Return = any>(
  fn?: (this: Self, ...args: Args) => Return,
): Spy<Self, Args, Return> {
  const calls: SpyCall<Self, Args, Return>[] = [];
  function wrapper(this: Self, ...args: Args): Return {
    const call: SpyCall<Self, Args, Return> = this ? { args, self: this } : { args };
    try {
      return call.returned = fn?.apply(this, args) as Return;
    } catch (error) {
      call.error = error as Error;
      throw error;
    } finally {
      calls.push(call);
    }
  }
  return Object.assign(wrapper, { calls });
}

/** Asserts how often `spy` was called. */
export function assertSpyCalls(spy: Spy<any, any, any>, expectedCalls: number): void {
  if (spy.calls.length === expectedCalls) return;
  const got = spy.calls.map((call) => Deno.inspect(call.args)).join(", ");
  throw new AssertionError(`Expected ${expectedCalls} calls of the spy, got ${spy.calls.length}: ${got}`);
}

/** Asserts what the call at `index` was given, and what it returned. */
export function assertSpyCall<Args extends unknown[], Return>(
  spy: Spy<any, Args, Return>,
  index: number,
  expected: ExpectedSpyCall<Args, Return> = {},
): void {
  const call = spy.calls[index];
  if (!call) throw new AssertionError(`Expected call ${index} of the spy, got ${spy.calls.length} calls`);
  for (const key of Object.keys(expected) as (keyof ExpectedSpyCall)[]) {
    if (equal(call[key], expected[key])) continue;
    const [got, wanted] = [Deno.inspect(call[key]), Deno.inspect(expected[key])];
    throw new AssertionError(`Expected ${key} of call ${index} to be ${wanted}, got ${got}`);
  }
}
