/**
 * tests/run.ts: what `deno task ok` and `deno task test` do.
 *
 * The tests use `@std/assert` and `@std/testing` from JSR, as `deno.json` says. On a machine that cannot reach JSR they
 * use the stand-ins in `tests/offline/` instead, through an import map; this program finds out which, and says so.
 *
 * Every check runs, also after one has failed, so that one look shows all there is to mend. The last line is the count
 * of tests that passed and failed; a check that failed counts as one failure, and with `--strict` so does a test that
 * stood aside.
 */

import { stripVTControlCharacters as stripAnsiCode } from "node:util";

const DENO = Deno.execPath();
const ROOT = new URL("..", import.meta.url);
const OPTIONS = { cwd: ROOT, env: { DENO_NO_UPDATE_CHECK: "1" } };
/** How long JSR may take to answer before it counts as out of reach, in milliseconds. */
const PROBE_TIMEOUT = 5000;

/** How a run of the tests ended. */
interface Counts {
  passed: number;
  failed: number;
  aside: string[];
}

async function main(args: string[]): Promise<number> {
  const strict = args.includes("--strict");
  const [what, ...rest] = args.filter((arg) => arg !== "--strict");
  if (what !== "ok" && what !== "test") {
    console.error("Usage: deno run -A tests/run.ts ok|test [--strict] [files or flags for deno test]");
    return 2;
  }
  const imports = await chooseImports();
  const failedChecks = what === "ok" ? await runChecks(imports) : [];
  const counts = await runTests(imports, rest);
  return report(counts, failedChecks, strict);
}

/** The flags that tell Deno where the packages of the tests come from. */
async function chooseImports(): Promise<string[]> {
  if (await inReach("jsr:@std/assert@^1.0.0")) {
    console.log("Tests use @std/assert and @std/testing from JSR");
    return [];
  }
  console.log("Tests use the stand-ins in tests/offline, for JSR is out of reach");
  return ["--import-map=tests/offline/import_map.json"];
}

/** Whether Deno, as it is set up here (`JSR_URL`, a proxy, its cache), can import `specifier`. */
async function inReach(specifier: string): Promise<boolean> {
  const { success } = await new Deno.Command(DENO, {
    ...OPTIONS,
    args: ["eval", "--no-config", `await import(${JSON.stringify(specifier)})`],
    stdout: "null",
    stderr: "null",
    signal: AbortSignal.timeout(PROBE_TIMEOUT),
  }).output();
  return success;
}

/** Everything but the tests; returns the names of what failed. */
async function runChecks(imports: string[]): Promise<string[]> {
  const modules = rootModules();
  const checks: [name: string, args: string[]][] = [
    ["fmt", ["fmt", "--check"]],
    ["lint", ["lint"]],
    ["check", ["check", ...imports, "."]],
    ["doc", ["doc", "--lint", ...modules]],
    ["publish", ["publish", "--dry-run", "--allow-dirty"]],
  ];
  const failed: string[] = [];
  for (const [name, args] of checks) {
    console.log(`deno ${args.join(" ")}`);
    if (!await deno(args)) failed.push(name);
  }
  return failed;
}

function rootModules(): string[] {
  return [...Deno.readDirSync(ROOT)].filter((entry) => entry.isFile && entry.name.endsWith(".ts"))
    .map((entry) => entry.name).sort();
}

/** Runs all tests and the snippets of all docs, or those of the files that the arguments name. */
async function runTests(imports: string[], args: string[]): Promise<Counts> {
  const child = new Deno.Command(DENO, {
    ...OPTIONS,
    args: ["test", "-P", "--doc", ...imports, ...args],
    stdout: "piped",
  }).spawn();
  const [shown, kept] = child.stdout.tee();
  const showing = shown.pipeTo(Deno.stdout.writable, { preventClose: true });
  const output = await new Response(kept).text();
  await showing;
  return count(stripAnsiCode(output), (await child.status).success);
}

/** Reads the counts from what Deno printed: its report for machines leaves out what fails outside of any test. */
function count(output: string, ok: boolean): Counts {
  const summary = [...output.matchAll(/^(?:ok|FAILED) \| (\d+) passed.*? \| (\d+) failed/gm)].at(-1);
  const counts: Counts = {
    passed: Number(summary?.[1] ?? 0),
    failed: Number(summary?.[2] ?? 0),
    aside: [...output.matchAll(/^ *(.+) \.\.\. ignored/gm)].map(([, name]) => name),
  };
  if (!ok && counts.failed === 0) counts.failed = 1; // There was no test that could fail: types do not check, for one.
  return counts;
}

function report(counts: Counts, failedChecks: string[], strict: boolean): number {
  if (failedChecks.length > 0) console.log(`Failed checks: ${failedChecks.join(", ")}`);
  if (counts.aside.length > 0) console.log(`${counts.aside.length} stood aside: ${counts.aside.join("; ")}`);
  const failed = counts.failed + failedChecks.length + (strict ? counts.aside.length : 0);
  console.log(`${counts.passed} passed, ${failed} failed`);
  return failed > 0 ? 1 : 0;
}

async function deno(args: string[]): Promise<boolean> {
  return (await new Deno.Command(DENO, { ...OPTIONS, args }).spawn().status).success;
}

if (import.meta.main) Deno.exit(await main(Deno.args));
