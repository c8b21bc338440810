/**
 * tests/bench/run.ts: all benchmarks, one after the other. Writes `tests/bench/RESULTS.md`; when only a part is asked for,
 * that part of it. With `--quick` it prints the report instead.
 *
 * `deno task bench [--quick] [--rounds=N] [--only=echo|idle|kernel|start]`
 */
import { benchEcho } from "./echo.ts";
import { benchIdle } from "./idle.ts";
import { benchKernel } from "./kernel.ts";
import { type Options, parseOptions, pick } from "./options.ts";
import { benchStart } from "./start.ts";
import { type Section, table, TARGET_HEAD, targetTable } from "./table.ts";
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
    ...sections.map(inWords),
  ];
  return `${parts.join("\n\n")}\n`;
}

function inWords({ title, body }: Section): string {
  return [`## ${title}`, ...body].join("\n\n");
}

/** `report` with this section, and the rows of its targets, in the place of those it had. */
function withSection(report: string, section: Section, date: string): string {
  const parts = report.trimEnd().split(/\n+(?=## )/);
  const fresh = inWords({ ...section, body: [`- measured again on ${date}`, ...section.body] });
  const index = parts.findIndex((part) => part.startsWith(`## ${section.title}\n`));
  parts.splice(index < 0 ? parts.length : index, 1, fresh);
  const targets = parts.findIndex((part) => part.startsWith("## Targets\n"));
  const rows = tableRows(parts[targets]);
  const its = tableRows(targetTable(section.targets));
  const isIts = ([what]: string[]) => its.some((row) => row[0] === what);
  const place = rows.findIndex(isIts);
  const others = rows.filter((row) => !isIts(row));
  others.splice(place < 0 ? others.length : place, 0, ...its);
  parts[targets] = `## Targets\n\n${table(TARGET_HEAD, others)}`;
  return `${parts.join("\n\n")}\n`;
}

function tableRows(text: string): string[][] {
  const lines = text.split("\n").filter((line) => line.startsWith("|"));
  return lines.slice(2).map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim()));
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
  const full = await report(sections, (performance.now() - began) / 60_000, options);
  const date = `${new Date().toISOString().slice(0, 10)}, ${options.rounds} rounds`;
  const text = options.only
    ? sections.reduce((text, section) => withSection(text, section, date), await Deno.readTextFile(RESULTS))
    : full;
  if (options.quick) {
    console.log(`\n${full}`);
  } else {
    await Deno.writeTextFile(RESULTS, text);
    await new Deno.Command(Deno.execPath(), { args: ["fmt", "-q", RESULTS.pathname] }).output();
    console.log(`\nWrote ${RESULTS.pathname}`);
  }
}
