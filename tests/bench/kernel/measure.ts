/**
 * tests/bench/kernel/measure.ts: measures one case of one runtime in a process of its own, so that nothing another case
 * did to the compiler or the heap shows. Prints nanoseconds per operation, `none` if the runtime has no such case.
 *
 * `deno run -A tests/bench/kernel/measure.ts RUNTIME CASE N`
 */
import type { CaseName, Cases } from "./cases.ts";

/** How long to warm up, in milliseconds: after half a second most cases still compile, and their heaps still grow. */
const WARM_UP = 800;
/** How long to measure, in milliseconds. */
const MEASURE = 250;
/** The least number of samples, unless they take long. */
const SAMPLES = 3;
const LONG = 1000;

const [runtime, name, n] = Deno.args;
const { cases }: { cases: Cases } = await import(`./${runtime}.ts`);
const one = cases[name as CaseName];
if (one) {
  for (const began = performance.now(); performance.now() - began < WARM_UP;) await one(Number(n));
  const samples: number[] = [];
  const began = performance.now();
  const enough = (ms: number) => ms >= LONG || (ms >= MEASURE && samples.length >= SAMPLES);
  while (samples.length === 0 || !enough(performance.now() - began)) samples.push(await one(Number(n)));
  console.log(samples.sort((a, b) => a - b)[samples.length >> 1]);
} else {
  console.log("none");
}
Deno.exit();
