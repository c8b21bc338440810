/**
 * tests/bench/kernel_bench.ts: the cases of the kernel for `deno bench`, to look at one of them: by the clock, and all in
 * one process, where one case finds what another did to compiler and heap. What counts is measured by kernel.ts.
 *
 * `deno bench [--filter=TEXT]`
 */
import { FAST, NAMES, rows, type Runtime, RUNTIMES, title } from "./kernel.ts";
import type { Cases, Stopwatch } from "./kernel/cases.ts";

/** About how many operations an iteration does; exactly as many for each runtime. */
const OPS = 2000;

async function load(runtime: Runtime): Promise<Cases> {
  try {
    return (await import(`./kernel/${runtime}.ts`)).cases;
  } catch (error) {
    console.error(`Skipped ${RUNTIMES[runtime]}: ${(error as Error).message}`);
    return {};
  }
}

const cases = new Map<Runtime, Cases>();
for (const name of NAMES) cases.set(name, await load(name));

for (const row of rows({ quick: false, rounds: 1, only: "" })) {
  for (const runtime of row.runtimes ?? NAMES) {
    const one = cases.get(runtime)![row.name];
    if (!one) continue;
    const group = title(row);
    const slow = row.n >= 100_000 || !FAST.includes(runtime);
    Deno.bench({
      name: `${group}: ${RUNTIMES[runtime]}`,
      group,
      baseline: runtime === "yieldloop",
      ...(slow && { n: 3, warmup: 1 }),
    }, async (b) => {
      const start: Stopwatch = () => {
        b.start();
        return () => (b.end(), NaN);
      };
      await one(row.n, OPS, start);
    });
  }
}
