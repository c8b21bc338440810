/**
 * tests/bench/kernel/measure.ts: measures one case of one runtime in a process of its own, so that nothing another case
 * did to the compiler or the heap shows. Prints nanoseconds per operation, `none` if the runtime has no such case.
 *
 * `deno run -A tests/bench/kernel/measure.ts RUNTIME CASE N`
 */
import process from "node:process";
import { type CaseName, type Cases, OPS, type Stopwatch } from "./cases.ts";

/** How long to warm up, in milliseconds: after half a second most cases still compile, and their heaps still grow. */
const WARM_UP = 800;
/** How long to measure, in milliseconds. */
const MEASURE = 250;
/** The least number of samples, unless they take long. */
const SAMPLES = 3;
const LONG = 1000;

/**
 * The stopwatch counts the processor time of the whole process, the garbage collector's threads included, and not the time:
 * waiting for a timer costs nothing, nor does a busy machine.
 */
const start: Stopwatch = () => {
  const began = process.cpuUsage();
  return (ops) => {
    const { user, system } = process.cpuUsage(began);
    return (user + system) * 1000 / ops;
  };
};

const [runtime, name, n] = Deno.args;
const { cases, ops = OPS }: { cases: Cases; ops?: number } = await import(`./${runtime}.ts`);
const found = cases[name as CaseName];
if (found) {
  const one = () => found(Number(n), ops, start);
  for (const began = performance.now(); performance.now() - began < WARM_UP;) await one();
  const samples: number[] = [];
  const began = performance.now();
  const enough = (ms: number) => ms >= LONG || (ms >= MEASURE && samples.length >= SAMPLES);
  while (samples.length === 0 || !enough(performance.now() - began)) samples.push(await one());
  console.log(samples.sort((a, b) => a - b)[samples.length >> 1]);
} else {
  console.log("none");
}
Deno.exit();
