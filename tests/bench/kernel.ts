/**
 * tests/bench/kernel.ts: what the kernel's operations cost, beside native promises, effection and Effect.
 *
 * `deno run -A tests/bench/kernel.ts [--quick] [--rounds=N] [--only=TEXT]`
 */
import type { CaseName } from "./kernel/cases.ts";
import { type Options, parseOptions, pick } from "./options.ts";
import {
  atLeast,
  atMost,
  median,
  pairedRatio,
  type Section,
  skipList,
  table,
  type Target,
  targetTable,
} from "./table.ts";

/** The runtimes, by the names of their files and in tables. */
export const RUNTIMES = {
  yieldloop: "yieldloop",
  bare: "bare generators",
  promises: "promises",
  effection: "effection",
  effect: "Effect",
} as const;
export type Runtime = keyof typeof RUNTIMES;
export const NAMES = Object.keys(RUNTIMES) as Runtime[];

/** How long one case may take, in milliseconds. */
const CASE_TIMEOUT = 10_000;
/** The peers of which a rough figure will do are measured so often at most. */
const PEER_ROUNDS = 3;

/** One row of the table. */
interface Row {
  name: CaseName;
  /** How many tasks, timers or levels. */
  n: number;
  /** Who is measured; by default all. */
  runtimes?: readonly Runtime[] | undefined;
}

/** Nanoseconds per operation, one figure a round, by runtime; none for who has no such case, or took too long. */
interface Result extends Row {
  times: Record<Runtime, number[]>;
}

export const FAST: readonly Runtime[] = ["yieldloop", "bare", "promises"];

function rowsOf(name: CaseName, sizes: readonly number[], runtimes?: readonly Runtime[]): Row[] {
  return sizes.map((n) => ({ name, n, runtimes }));
}

export function rows({ quick, only }: Options): Row[] {
  const all = quick ? [...rowsOf("switch", [1, 1000]), ...rowsOf("spawn and join", [100, 10_000])] : [
    ...rowsOf("switch", [1, 1000]),
    ...rowsOf("switch", [100_000], FAST),
    ...rowsOf("bare switch", [1000], ["promises"]),
    ...rowsOf("spawn and join", [100, 10_000]),
    ...rowsOf("spawn and join", [1_000_000], FAST),
    ...rowsOf("spawn and join with all", [100, 10_000]),
    ...rowsOf("timer set and fire", [100]),
    ...rowsOf("timer set and fire", [10_000, 100_000], FAST),
    ...rowsOf("timer set and cancel", [100]),
    ...rowsOf("timer set and cancel", [10_000, 100_000], FAST),
    ...rowsOf("queue put and get", [1, 100]),
    ...rowsOf("lock hand-over", [2, 1000]),
    ...rowsOf("event wake", [100, 10_000]),
    ...rowsOf("event wake", [100_000], FAST),
    ...rowsOf("cancel", [100, 10_000]),
    ...rowsOf("cancel", [100_000], FAST),
    ...rowsOf("switch at depth", [1, 10, 100, 1000]),
    ...rowsOf("switch at depth by call", [1, 100, 1000], ["yieldloop"]),
  ];
  return pick(all, only, title);
}

export function title({ name, n }: Row): string {
  return `${name}, ${n.toLocaleString("en-US")}`;
}

/** Measures one case in a process of its own; null if there is no such case, or it took too long. */
async function measure(runtime: Runtime, { name, n }: Row, skipped: string[]): Promise<number | null> {
  const script = new URL("kernel/measure.ts", import.meta.url).pathname;
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", script, runtime, name, String(n)],
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const timer = setTimeout(() => child.kill("SIGKILL"), CASE_TIMEOUT);
  const { code, stdout, stderr } = await child.output();
  clearTimeout(timer);
  const time = Number(new TextDecoder().decode(stdout).trim() || NaN);
  if (code !== 0) {
    skipped.push(`${RUNTIMES[runtime]}, ${title({ name, n })}: ${reason(code, stderr)}`);
    console.error(`Skipped ${skipped.at(-1)}`);
  }
  return Number.isFinite(time) ? time : null;
}

function reason(code: number, stderr: Uint8Array): string {
  if (code === 137) return `it took longer than ${CASE_TIMEOUT / 1000} s`;
  return new TextDecoder().decode(stderr).trim().split("\n")[0];
}

/** Measures every runtime once a round, one after the other. Who has failed once is left out from then on. */
async function alternate(row: Row, rounds: number, skipped: string[]): Promise<Result> {
  const times = Object.fromEntries(NAMES.map((name) => [name, []])) as unknown as Result["times"];
  let runtimes = [...row.runtimes ?? NAMES];
  for (let round = 0; round < rounds; round++) {
    for (const runtime of runtimes.filter((one) => round < PEER_ROUNDS || FAST.includes(one))) {
      const time = await measure(runtime, row, skipped);
      if (time === null) runtimes = runtimes.filter((one) => one !== runtime);
      else times[runtime].push(time);
    }
  }
  return { ...row, times };
}

function ratio({ times }: Result, a: Runtime, b: Runtime): number {
  return pairedRatio(times[a].slice(0, times[b].length), times[b]);
}

function report(results: readonly Result[]): string {
  return table(
    [
      "case, n",
      ...NAMES.map((name) => `${RUNTIMES[name]} ns`),
      "ours to bare",
      "ours to promises",
      "effection to ours",
      "Effect to ours",
    ],
    results.map((result) => [
      title(result),
      ...NAMES.map((name) => median(result.times[name])),
      ratio(result, "yieldloop", "bare"),
      ratio(result, "yieldloop", "promises"),
      ratio(result, "effection", "yieldloop"),
      ratio(result, "effect", "yieldloop"),
    ]),
  );
}

/** Measures the kernel. */
export async function benchKernel(options: Options): Promise<Section> {
  const results: Result[] = [];
  const skipped: string[] = [];
  for (const row of rows(options)) {
    const result = await alternate(row, options.rounds, skipped);
    if (NAMES.every((name) => result.times[name].length === 0)) continue; // A case that nobody has.
    results.push(result);
    console.log(`${title(row)}: ${NAMES.map((name) => `${RUNTIMES[name]} ${median(result.times[name]).toFixed(0)}`)}`);
  }
  return { title: "Kernel", body: [EXPLANATION, report(results), ...skipList(skipped)], targets: targets(results) };
}

const EXPLANATION =
  "Nanoseconds of processor time per operation. `n` is how many tasks take part; with timers, how many others are " +
  "pending; with a queue, its room; with depth, how many coroutines are nested. " +
  "Bare generators are the floor: a loop that steps them in turn and can do nothing else.";

function targets(results: readonly Result[]): Target[] {
  const find = (name: CaseName, n: number) => results.find((one) => one.name === name && one.n === n);
  const list: Target[] = [];
  /** Adds a target if what it is about was measured. */
  const add = (row: Result | undefined, target: (row: Result) => Target) => {
    if (row) list.push(target(row));
  };
  const time = (row: Result | undefined, runtime: Runtime = "yieldloop") => median(row?.times[runtime] ?? []);
  const inTime = (what: string, limit: number, row: Result) => ({
    ...atMost(what, limit, time(row), " ns"),
    floor: time(row, "bare"),
  });
  const toPromises = (what: string, limit: number, row: Result) => ({
    ...atMost(`${what} against promises`, limit, ratio(row, "yieldloop", "promises")),
    floor: row.times.bare.length > 0 ? ratio(row, "bare", "promises") : undefined,
  });

  add(find("switch", 1000), (row) => inTime("task switch, 1000 tasks", 60, row));
  add(find("switch", 1000), (row) => toPromises("task switch, 1000 tasks,", 0.6, row));
  for (const peer of ["effection", "effect"] as const) {
    add(
      find("switch", 1000),
      (row) => atLeast(`task switch, times faster than ${RUNTIMES[peer]}`, 20, ratio(row, peer, "yieldloop")),
    );
  }
  for (const row of results.filter((one) => one.name === "spawn and join")) list.push(inTime(title(row), 300, row));
  add(find("spawn and join", 1_000_000), (row) => {
    const few = find("spawn and join", 100);
    return {
      ...atMost("spawn and join, growth from 100 to 1,000,000 tasks", 1.2, time(row) / time(few), "", " (flat)"),
      floor: time(row, "bare") / time(few, "bare"),
    };
  });
  for (const name of ["timer set and fire", "timer set and cancel"] as const) {
    add(find(name, 100_000), (row) => toPromises(`${name}, 100,000 pending,`, 0.5, row));
  }
  for (const room of [1, 100]) {
    add(find("queue put and get", room), (row) => toPromises(`queue put and get, room for ${room},`, 0.5, row));
  }
  for (const name of ["switch at depth", "switch at depth by call"] as const) {
    add(find(name, 100), (row) => {
      const one = find("switch at depth", 1);
      return {
        ...atMost(`${name} 100, to depth 1`, 2, time(row) / time(one)),
        floor: row.times.bare.length > 0 ? time(row, "bare") / time(one, "bare") : undefined,
      };
    });
  }
  return list;
}

if (import.meta.main) {
  const { body, targets } = await benchKernel(parseOptions(Deno.args));
  console.log(`\n${body.slice(1).join("\n\n")}\n\n${targetTable(targets)}`);
}
