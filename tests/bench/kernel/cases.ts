/**
 * tests/bench/kernel/cases.ts: what is measured of a kernel, by name. Each runtime has the same cases, in its own idiom,
 * in a file of its own.
 */
/**
 * Does a case once, with `n` tasks, timers or levels: about `ops` operations in all. What is to be measured begins with
 * `const done = start()` and ends with `return done(the operations it really were)`.
 */
export type Case = (n: number, ops: number, start: Stopwatch) => Promise<number>;

/** Starts to measure. What it returns stops that, and tells what one of so many operations took. */
export type Stopwatch = () => (ops: number) => number;

/** The cases a runtime has; what it has no idiom for is left out. */
export type Cases = Partial<Record<CaseName, Case>>;

/** The names of the cases. */
export type CaseName =
  | "switch"
  | "bare switch"
  | "spawn and join"
  | "spawn and join with all"
  | "timer set and fire"
  | "timer set and cancel"
  | "queue put and get"
  | "lock hand-over"
  | "event wake"
  | "cancel"
  | "switch at depth"
  | "switch at depth by call";

/** How many operations a sample does, so that it takes some milliseconds. A slow runtime exports a number of its own. */
export const OPS = 100_000;
/** How many timers are set and fire again and again, besides those that are pending, and how often each does. */
export const TIMERS = 5000;
export const FIRINGS = 4;
/** Longer than all samples of a case take, in milliseconds. */
export const LONG = 600_000;

/** How often one of `n` tasks switches: so often that its birth and its end do not show. */
export function switchesOf(n: number, ops: number): number {
  return Math.max(20, Math.round(10 * ops / n));
}

/** How often each of `n` has to do it for about `ops` in all. */
export function times(n: number, ops: number): number {
  return Math.max(1, Math.round(ops / n));
}

/** A short delay in milliseconds, not the same for all. */
export function delay(i: number): number {
  return 1 + i % 5;
}
