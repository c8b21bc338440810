/**
 * tests/bench/run.ts: all benchmarks, one after the other. Writes `tests/bench/RESULTS.md`; with `--quick`, or when only a
 * part is asked for, it prints the report instead.
 *
 * `deno task bench [--quick] [--rounds=N] [--only=echo|idle|kernel|start]`
 */
import { benchEcho } from "./echo.ts";
import { benchIdle } from "./idle.ts";
import { benchKernel } from "./kernel.ts";
import { type Options, parseOptions, pick } from "./options.ts";
import { benchStart } from "./start.ts";
import { type Section, targetTable } from "./table.ts";
import { versions } from "./variants.ts";

const BENCHMARKS = { kernel: benchKernel, start: benchStart, idle: benchIdle, echo: benchEcho };
const RESULTS = new URL("RESULTS.md", import.meta.url);

async function report(sections: Section[], minutes: number, options: Options): Promise<string> {
  const rounds = `${options.rounds} rounds, ${minutes.toFixed(0)} minutes${options.quick ? ", quick" : ""}`;
  const parts = [
    "# Results",
    "Written by `deno task bench`; do not edit. How it is measured, and what the figures mean: [README.md](README.md).",
    [`- ${new Date().toISOString().slice(0, 10)}, ${rounds}`, ...machine(), ...await versions()]
      .map((line) => line.replace(/^(?!- )/, "- ")).join("\n"),
    "## Targets",
    targetTable(sections.flatMap((section) => section.targets)),
    ...sections.flatMap(({ title, body }) => [`## ${title}`, ...body]),
  ];
  return `${parts.join("\n\n")}\n`;
}

/** What it was measured on. */
function machine(): string[] {
  const model = Deno.readTextFileSync("/proc/cpuinfo").match(/^model name\s*: (.*)$/m)?.[1] ?? "unknown processor";
  const memory = Math.round(Deno.systemMemoryInfo().total / 2 ** 30);
  const load = Deno.loadavg()[0].toFixed(1);
  return [
    `${navigator.hardwareConcurrency} cores, ${model}, ${memory} GiB, load at the end ${load}`,
  ];
}

if (import.meta.main) {
  const options = parseOptions(Deno.args);
  const began = performance.now();
  const sections: Section[] = [];
  for (const [_, bench] of pick(Object.entries(BENCHMARKS), options.only, ([name]) => name)) {
    sections.push(await bench({ ...options, only: "" }));
  }
  const text = await report(sections, (performance.now() - began) / 60_000, options);
  if (options.quick || options.only) {
    console.log(`\n${text}`);
  } else {
    await Deno.writeTextFile(RESULTS, text);
    await new Deno.Command(Deno.execPath(), { args: ["fmt", "-q", RESULTS.pathname] }).output();
    console.log(`\nWrote ${RESULTS.pathname}`);
  }
}
