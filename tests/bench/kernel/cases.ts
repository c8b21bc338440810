/**
 * tests/bench/kernel/cases.ts: what is measured of a kernel, by name. Each runtime has the same cases, in its own idiom,
 * in a file of its own.
 */
import process from "node:process";

/** Does a case once, with `n` tasks, timers or levels, and resolves to nanoseconds per operation. */
export type Case = (n: number) => Promise<number>;

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

/** About how many operations one sample of a cheap case does, so that it takes some milliseconds. */
export const OPS = 100_000;
/** How many timers are set and fire again and again, besides those that are pending, and how often each does. */
export const TIMERS = 5000;
export const FIRINGS = 4;
/** Longer than all samples of a case take, in milliseconds. */
export const LONG = 600_000;

/** How often one of `n` tasks switches: so often that its birth and its end do not show. */
export function switchesOf(n: number): number {
  return Math.max(20, 200_000 / n);
}

/** How often each of `n` has to do it for about {@linkcode OPS} in all. */
export function times(n: number): number {
  return Math.max(1, Math.round(OPS / n));
}

/** A short delay in milliseconds, not the same for all. */
export function delay(i: number): number {
  return 1 + i % 5;
}

/**
 * A stopwatch: `const done = start(); ...; return done(ops)`. It counts the processor time of the whole process, the
 * garbage collector's threads included, and not the time: waiting for a timer costs nothing, nor does a busy machine.
 */
export function start(): (ops: number) => number {
  const began = process.cpuUsage();
  return (ops) => {
    const { user, system } = process.cpuUsage(began);
    return (user + system) * 1000 / ops;
  };
}
