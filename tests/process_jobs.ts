/** process_jobs.ts: what process_test.ts has workers call. */

/** Twice as much. */
export default function twice(n: number): number {
  return n * 2;
}

/** Half of it, later. */
export function half(n: number): Promise<number> {
  return Promise.resolve(n / 2);
}
